"""A whole run, its student sharded by FSDP2, in as many processes as the launcher started; for test_whole_run.py.

python -m torch.distributed.run --nproc-per-node 2 whole_run.py CONFIG [xtoken train's options]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from training.processes import use_fsdp2
from xtoken.cli import main
from xtoken.training.run import _Run

plain_trainer = _Run.trainer


def sharded_trainer(run: _Run, *args: Any) -> Any:
    trainer = plain_trainer(run, *args)
    use_fsdp2(trainer)
    return trainer


if __name__ == "__main__":
    _Run.trainer = sharded_trainer  # type: ignore[method-assign]
    sys.argv[1:1] = ["train"]
    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    # Seen once: a thread of torch's aborts the interpreter on its way down, after the group was destroyed.
    os._exit(status)
