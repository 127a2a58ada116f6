"""Without Numba everything works with PyTorch's operations, and says so once."""

import json
import subprocess
import sys

CODE = """
import json, logging, sys
sys.modules["numba"] = None  # importing it raises ImportError, as if it were not installed
warnings = []
class Keep(logging.Handler):
    def emit(self, record): warnings.append(record.getMessage())
logging.getLogger("chattune").addHandler(Keep())

import torch
from chattune.errors import ChatError
from chattune.generate import Decoding
from chattune.generate.load import load_engine
from chattune.kernels.dropout import draw_dropout, drop
from chattune.kernels.gelu import TanhGelu

x = torch.randn(50, 40, requires_grad=True)
gelu = TanhGelu()(x)
mask = draw_dropout(x, 0.5)
dropped = drop(x, 0.5, mask)
refusals = []
for choice in ({"engine": "fast"}, {"quantize": "int8"}):
    try:
        load_engine("starter", **choice)
    except ChatError as error:
        refusals.append(str(error))
chosen = load_engine("starter")
reply = list(chosen.engine.generate([[0, 5, 6]], Decoding(max_new_tokens=3)))
print(json.dumps({
    "gelu": torch.equal(gelu, torch.nn.functional.gelu(x, approximate="tanh")),
    "dropped": torch.equal(dropped != 0, mask),
    "refusals": refusals,
    "kind": chosen.kind,
    "tokens": len(reply),
    "warnings": warnings,
}))
"""


def test_pytorch_computes_and_the_reference_engine_answers() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["gelu"]
    assert outcome["dropped"]
    assert [text.partition(" (")[0] for text in outcome["refusals"]] == [
        "engine fast: it needs Numba, which cannot be used here",
        "quantize int8: it needs Numba, which cannot be used here",
    ]
    assert (outcome["kind"], outcome["tokens"]) == ("reference, fp32", 3)
    assert len(outcome["warnings"]) == 1
    assert outcome["warnings"][0].startswith("Numba cannot be used (ModuleNotFoundError")
