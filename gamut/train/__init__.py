"""Training: the step, the engines, checkpoints, what guards a run.

DeepSpeed loads MLflow for its autotuner and torch's compiler for the optimiser Muon, a second each and more. Neither is
used here: what it takes of the two is put in their place before anything below imports it.
"""

import sys
from types import ModuleType

for _name, *_taken in (
    ("deepspeed.autotuning.autotuner", "Autotuner"),
    ("deepspeed.runtime.zero.muon.original_muon", "MuonWithAuxAdam", "adam_update", "muon_update"),
):
    _module = ModuleType(_name, "Nothing of it is used.")
    vars(_module).update({_one: type(_one, (), {}) for _one in _taken})
    sys.modules.setdefault(_name, _module)
