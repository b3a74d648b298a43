"""The teacher's U predictions of SeFAR, which share one pass of the ViT, against a single one and against U passes.

    python benchmarks/teacher.py

Printed are the times and their ratios; that the predictions have the distribution of separate passes is a test
(tests/unit/models/sefar). All that is random in them lies in the head's dropout.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from pipeline.models.sefar import SeFARModel
from pipeline.models.sefar.timesformer import ARCHITECTURES

LIMIT = 1.2
"""What U predictions may cost, in times of one."""


def seconds(work: Callable[[], object], repeats: int) -> float:
    """The least time of some calls, which is the least disturbed one."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=10, help="U")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--size", choices=list(ARCHITECTURES), default="nano")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = SeFARModel({"source": arguments.size}, 99, passes=arguments.passes).to(device)
    model.start_teacher()
    side = model.image_size
    weak = [torch.randn(arguments.videos, t, 3, side, side, device=device) for t in model.lengths]
    teacher = model.teacher
    one = seconds(lambda: teacher.dropped_logits(weak, 1), arguments.repeats)
    several = seconds(lambda: model.teacher_logits(weak), arguments.repeats)
    separate = seconds(
        lambda: [teacher.dropped_logits(weak, 1) for _ in range(arguments.passes)], max(arguments.repeats // 2, 1)
    )
    ratio = several / one
    verdict = "kept" if ratio <= LIMIT else "broken"
    print(
        f"ViT {arguments.size}, {arguments.videos} videos: one prediction {1000 * one:.1f} ms, {arguments.passes} "
        f"predictions {1000 * several:.1f} ms, ratio {ratio:.3f} (limit {LIMIT}: {verdict}); "
        f"as separate passes {1000 * separate:.1f} ms, {separate / one:.1f} times one"
    )


if __name__ == "__main__":
    main()
