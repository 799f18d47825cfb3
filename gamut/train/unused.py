"""What DeepSpeed loads and nothing here uses: MLflow for its autotuner, torch's compiler for the optimiser Muon.

Each takes a second or more. Imported before DeepSpeed, this puts empty names in their place, and keeps it from warning
of a CPU: a run that should have a GPU ends (gamut.accelerator).
"""

import logging
import sys
from types import ModuleType

for _name, *_taken in (
    ("deepspeed.autotuning.autotuner", "Autotuner"),
    ("deepspeed.runtime.zero.muon.original_muon", "MuonWithAuxAdam", "adam_update", "muon_update"),
):
    _module = ModuleType(_name, "Nothing of it is used.")
    vars(_module).update({_one: type(_one, (), {}) for _one in _taken})
    sys.modules.setdefault(_name, _module)

logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in str(record.msg))
