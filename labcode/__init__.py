"""The tested module behind the chapters of Interp Lab: science only. In order of import, each from those above it:

errors, inputs, progress                   what every module may raise; what it asks of its arguments; what it may show
sealed                                     recorded data in JSON, and whether it is what was recorded
forward, models, toy                       arithmetic of a decoder; loading one; one wired by hand, with a known circuit
prompts, tasks, variants                   populations with named positions; tasks of your own; the task, changed
frames                                     sentences of the recorded evidence: one half to find with, one to judge on
metrics, residual                          what a run is worth, with intervals; the residual stream as a sum
heads                                      what heads attend to, and what their OV circuits do to a name
recorded                                   values found again by all that they depend on
patching                                   `sweep` and `path_patch`: one activation, or one wire, from another run
joint                                      sets of heads patched together, many sets at once
circuit                                    heads kept or taken out, in many states at once
edges                                      circuits as sets of edges: who reads whose output, and what that is worth
faithful                                   is what is left the circuit?
families                                   the criteria of the head families, and the search for members
corpus, sae, latents                       sparse autoencoders: text, train and judge, read and edit
transcoder                                 what an MLP writes, predicted from what it reads: choose, train, judge
attribution                                a graph of one run: latents, heads and errors, and what each adds to the next
evidence                                   what was measured once at full size, and measured again in part by each build
readable, superposition                    rules that say where a latent fires; what was found beside what is known
plots, report                              figures; numbers, claims and published values. They import the first two only

Importing `labcode` imports none of them. The page "Inside the lab" shows how they work together.
"""

import sys
import warnings

# tqdm asks for ipywidgets wherever a notebook imports one of the model libraries; the lab shows its bars in text.
warnings.filterwarnings("ignore", message="IProgress not found")

# The first figure makes plotly import nbformat, that jsonschema, and that, where JupyterLab is installed, a grammar of
# web addresses: it takes 1.1 s to compile, in every kernel, and jsonschema can do without.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
