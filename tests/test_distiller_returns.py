"""What a wrapped distiller may return, and how it must have used its student."""

from __future__ import annotations

import pytest
import torch
from distiller_forms import (
    LABELS,
    Base,
    LogitsAndTerms,
    OurDict,
    images,
    wrap,
)
from torch import Tensor

from tmkd_plugin.errors import InputError


class ReturnsNonsense(Base):
    def forward(self, images: Tensor, labels: Tensor) -> list[str]:
        _ = self.student(images), self.teacher(images)
        return ["loss"]


def test_a_return_that_is_no_loss_is_described() -> None:
    with pytest.raises(InputError, match=r"returned a list of str\. Expected a dict with 'loss'"):
        wrap(ReturnsNonsense())(images(), LABELS)


def test_figures_for_the_log_are_not_taken_for_terms() -> None:
    class Logs(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            out = super().forward(images, labels)
            return {**out, "accuracy": (out["output"].argmax(1) == labels).float().mean()}

    out = wrap(Logs())(images(), LABELS)
    assert "accuracy" not in out
    torch.testing.assert_close(out["loss"], sum(v for k, v in out.items() if k not in ("loss", "output")))


def test_loss_and_logs_are_not_taken_for_logits_and_terms() -> None:
    class LossAndLogs(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            out = super().forward(images, labels)
            return out["loss"], {"ce": out["ce"].detach()}

    with pytest.raises(InputError, match=r"For \(loss, logs\) return the loss alone"):
        wrap(LossAndLogs())(images(), LABELS)


def test_numbers_among_the_terms_and_predictions_in_eval_mode() -> None:
    class Warm(LogitsAndTerms):
        def forward(self, images: Tensor, labels: Tensor) -> object:
            if not self.training:
                return self.student(images)
            logits, terms = super().forward(images, labels)
            return logits, {**terms, "warm_up": 0.0}

    enhancer = wrap(Warm())
    enhancer(images(), LABELS)["loss"].backward()
    with pytest.raises(InputError, match=r"never called its teacher|distiller\.student\(images\)"):
        enhancer.eval()(images(), LABELS)


def test_the_students_own_trial_run_without_gradient_is_not_mistaken_for_its_step() -> None:
    class LooksFirst(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                self.student(images * 0.5)
            return super().forward(images, labels)

    distiller = LooksFirst()
    enhancer = wrap(distiller)
    out = enhancer(images(), LABELS)
    added = out["feature_kl"] + out["text_contrast"]
    assert all(grad is not None for grad in torch.autograd.grad(added, list(distiller.student.parameters())[:4]))


def test_a_student_without_gradient_is_refused() -> None:
    class NoGradient(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                return super().forward(images, labels)

    enhancer = wrap(NoGradient())
    with pytest.raises(InputError, match="ran without gradient"):
        enhancer(images(), LABELS)
    enhancer.eval()(images(), LABELS)
    with torch.no_grad():
        enhancer.train()(images(), LABELS)


def test_a_student_called_on_other_rows_is_refused() -> None:
    class TwoCrops(OurDict):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            student = self.student(torch.cat([images, images.flip(3)]))
            return sum(self.losses(student[:5], self.teacher(images), labels).values())

    with pytest.raises(InputError, match="called its student on 10 images first, but the batch has 5 labels"):
        wrap(TwoCrops())(images(), LABELS)
