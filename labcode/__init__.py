"""The tested module behind the chapters of Interp Lab.

Each module has one job and is named after it: `models`, `prompts`, `metrics`, `residual`, `plots`, `report`.
A module of the science imports only modules that come before it in that order; `plots` and `report` import
none of them; only `models` touches the network or the model cache. Importing `labcode` imports none of them.
"""

import warnings

# tqdm asks for ipywidgets wherever a notebook imports one of the model libraries; the lab shows its bars in text.
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"
