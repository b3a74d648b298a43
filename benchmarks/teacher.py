"""The teacher's U predictions of SeFAR, which share one pass of the ViT, against a single one and against U passes.

That the predictions have the distribution of separate passes is a test (tests/unit/models/sefar). All that is random in
them lies in the head's dropout, so with it switched off they must be equal.
"""

from __future__ import annotations

import torch

from benchmarks.lines import Line, alternating
from pipeline.models.semi import SeFARModel

TOPIC = "5 teacher and skeletons"
LIMIT = 1.2
"""What U predictions may cost, in times of one."""


@torch.inference_mode()
def measure(passes: int = 10, videos: int = 8, size: str = "nano", repeats: int = 5) -> list[Line]:
    """Lines of `passes` predictions for `videos` videos by a ViT of `size`."""
    torch.manual_seed(0)
    model = SeFARModel({"source": size}, 99, passes=passes)
    model.start_teacher()
    side = model.image_size
    weak = [torch.randn(videos, t, 3, side, side) for t in model.lengths]
    teacher = model.teacher

    def separate() -> list[torch.Tensor]:
        return [teacher.dropped_logits(weak, 1) for _ in range(passes)]

    one, several, apart = alternating(
        (lambda: teacher.dropped_logits(weak, 1), lambda: model.teacher_logits(weak), separate), repeats
    )
    for module in teacher.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    together = model.teacher_logits(weak)
    equal = torch.allclose(together, torch.cat([x.reshape(1, *together.shape[1:]) for x in separate()]), atol=1e-5)
    what = f"SeFAR ViT {size}, {videos} videos: {passes} predictions"
    return [
        Line(TOPIC, f"{what}, against one", one, several, targets=(("share", LIMIT),), equal=equal),
        Line(TOPIC, f"{what}, against {passes} passes", apart, several, equal=equal, note="equal: without dropout"),
    ]
