"""What only a card can say of metarun: checks first, then rates, then trainings of published cells, within a budget of time.

    python scripts/gpu_check.py [--device cuda] [--out gpu_check] [--seconds 840] [--train-seconds 420] [--data DIR] [--only maml,protonet]
    python scripts/gpu_check.py --device cpu --quick      the rehearsal: the same, small, on any machine
    python scripts/gpu_check.py wheels                    what a machine without a network needs beside its own torch

OUT/report.json has every figure; OUT/runs the trainings, with which the same command goes on. --data is the folder of Omniglot's zips;
without it nothing is trained, but for the rehearsal. Exit code 1 if something is not as it should be.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from gpu import trainings, units


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["check", "wheels"], default="check")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--seconds", type=float, default=840, help="in all")
    parser.add_argument("--train-seconds", type=float, default=420, help="of them for trainings at the end; checks may leave more")
    parser.add_argument("--unit-seconds", type=float, default=60, help="the most for one check")
    parser.add_argument("--data", help="dataset.root of the trainings")
    parser.add_argument("--only", default="", help="algorithms to check, by commas")
    parser.add_argument("--quick", action="store_true", help="three algorithms, one rate, a training of four steps")
    args = parser.parse_args()
    if args.what == "wheels":
        from gpu import wheels  # reads pyproject.toml by a module that Python 3.10 does not have

        print("\n".join(wheels.commands()))
        return 0
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic kernels ask for it before cuBLAS starts
    until = time.monotonic() + args.seconds
    report = units.Report(args.out, args.device)
    cells = [trainings.QUICK] if args.quick else list(trainings.CELLS) if args.data else []
    todo = units.units(args.device, [name for name in args.only.split(",") if name], args.quick)
    for unit, found in units.run(todo, args.device, args.quick, until - bool(cells) * args.train_seconds, args.unit_seconds):
        report.add(unit, found)
    for cell, found in trainings.train(cells, args.device, args.data, args.out / "runs", until):
        report.add(("train", cell), found)
    print(f"{len(report.results)} of {len(todo) + len(cells)} done, {len(report.bad)} not as they should be: {report.path}")
    return int(bool(report.bad))


if __name__ == "__main__":
    sys.exit(main())
