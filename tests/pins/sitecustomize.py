"""Python imports this at its start where the folder is on PYTHONPATH: random weights may then stand in GPT-2's place.

The book knows the checksum of the true file and what the true model says next, and refuses all else under that name.
The true weights can't be had where these tests run; everything but those two checks is real.
"""

import warnings

from labcode import models

true = models.KNOWN["gpt2"]
others = {name: pin for name, pin in true.files.items() if name != "model.safetensors"}
models.KNOWN["gpt2"] = true._replace(files=others)
models.self_check = lambda model, name: float("nan")
# `python -m labcode.models` finds the module imported already.
warnings.filterwarnings("ignore", message=".*labcode.models.* found in sys.modules", category=RuntimeWarning)
