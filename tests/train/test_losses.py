import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.errors import InputError
from train.config import LossConfig
from train.losses import LOSSES, Loss, Terms, make_loss, reduce_terms

SHARE = torch.tensor([0.5, 0.1, 0.01])
PAIRS = ("bce", "pos_weighted", "class_balanced", "focal", "asl", "apl", "hill", "proper")
WITH_MEMORY = ("tail", "smooth_ap", "top_precision")
STRICTLY_PROPER = ("bce", "class_balanced", "proper")
IMPROPER = ("pos_weighted", "focal", "asl", "apl", "hill")
# Powers below 1 are where a careless x^gamma has an infinite gradient.
SHARP = {"gamma": 0.5, "gamma_pos": 0.5, "gamma_neg": 0.5}


def loss_of(name: str, share: Tensor = SHARE, **settings: float) -> Loss:
    return make_loss(LossConfig(name=name, **settings), share)  # type: ignore[arg-type]


def values_of(name: str, logit: Tensor, target: Tensor, **settings: float) -> Tensor:
    return loss_of(name, **settings)(logit, target, torch.ones_like(logit)).value


def example(rows: int = 12, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets of which a quarter is soft, and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)
    logit = 2 * torch.randn(rows, classes, generator=generator)
    target = (torch.rand(rows, classes, generator=generator) < 0.4).float()
    soft = torch.rand(rows, classes, generator=generator)
    target = torch.where(torch.rand(rows, classes, generator=generator) < 0.25, soft, target)
    mask = (torch.rand(rows, classes, generator=generator) < 0.8).float()
    return logit, target, mask


def fill(loss: Loss, classes: int = 3) -> Loss:
    """The loss with something in its memory, which then stays as it is."""
    loss(*(part.requires_grad_(i == 0) for i, part in enumerate(example(40, 7, classes))))
    return loss.eval()


# Each formula as its paper prints it, in float64.


def softplus(x: float) -> float:
    return float(np.logaddexp(0, x))


def transcribed(name: str, x: float, y: float, c: int, config: LossConfig) -> float:
    p = 1 / (1 + np.exp(-x))
    if name in ("bce", "pos_weighted", "class_balanced"):
        share = SHARE.numpy().astype(np.float64)
        positive, all_of_class = 1.0, 1.0
        if name == "pos_weighted":
            positive = min((1 - share[c]) / share[c], config.max_pos_weight)
        if name == "class_balanced":
            # Cui et al.: N = 100,000 images, beta = 1 - 1 / (share * N).
            beta = 1 - 1 / (config.effective_share * 100_000)
            weight = (1 - beta) / (1 - beta ** (share * 100_000))
            all_of_class = weight[c] / weight.mean()
        return float(all_of_class * (-positive * y * np.log(p) - (1 - y) * np.log(1 - p)))
    if name == "focal":
        return float(-y * (1 - p) ** config.gamma * np.log(p) - (1 - y) * p**config.gamma * np.log(1 - p))
    if name == "hill":
        moved = 1 / (1 + np.exp(-(x - config.hill_margin)))
        positive = -((1 - moved) ** config.gamma) * np.log(moved)
        return float(y * positive + (1 - y) * (config.hill_lambda - p) * p**2)
    if name == "proper":
        # By Buja's integrals with w(c) = c^(a - 1) / (1 - c), on a fine grid.
        a = config.asymmetry
        grid = np.linspace(0, p, 200_001)[1:] - p / 400_000
        negative = float(np.sum(grid**a / (1 - grid)) * p / 200_000)
        return float(y * (1 - p**a) / a + (1 - y) * negative)
    q = max(p - config.margin, 0)
    positive = -np.log(p)
    if name == "apl":
        positive += config.apl_first * (1 - p) + config.apl_second / 2 * (1 - p) ** 2
    return float(
        y * (1 - p) ** config.gamma_pos * positive + (1 - y) * -(q**config.gamma_neg) * np.log(1 - q)
    )


@pytest.mark.parametrize("name", PAIRS)
def test_pairs__equal_their_formula(name: str) -> None:
    config = LossConfig(name=name, gamma_pos=1.0)
    random = np.random.default_rng(0)
    x, y = random.normal(0, 3, (20, 3)), random.integers(0, 2, (20, 3)).astype(float)
    y[:5] = 0.3  # soft targets of mixed images
    logit = torch.tensor(x, dtype=torch.float32)
    got = make_loss(config, SHARE)(logit, torch.tensor(y), torch.ones(20, 3)).value.numpy()
    wanted = [[transcribed(name, x[i, c], y[i, c], c, config) for c in range(3)] for i in range(20)]
    np.testing.assert_allclose(got, wanted, rtol=2e-4 if name == "class_balanced" else 3e-5, atol=2e-6)


def test_lsep_and_zlpr__equal_their_formula() -> None:
    x, y = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    pairs = math.exp(-2 - 1) + math.exp(-2 - 0.5)
    torch.testing.assert_close(float(values_of("lsep", x, y)[0]), math.log(1 + pairs), rtol=1e-5, atol=0)
    wanted = math.log(1 + math.exp(-1) + math.exp(-0.5)) + math.log(1 + math.exp(-2))
    torch.testing.assert_close(float(values_of("zlpr", x, y)[0]), wanted, rtol=1e-5, atol=0)


def test_two_way__equals_its_formula() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(0, 2, (6, 3)), (random.random((6, 3)) < 0.5).astype(float)
    y[0], y[:, 2] = 0, 0  # an image and a class without a positive do not count

    def way(x: np.ndarray, y: np.ndarray) -> float:
        found = [
            softplus(
                np.log(np.exp(a[b == 0]).sum()) + 4 * np.log(np.exp(-a[b == 1] / 4).sum())  # T = 4
            )
            for a, b in zip(x, y, strict=True)
            if 0 < b.sum() < len(b)
        ]
        return float(np.mean(found))

    got = float(values_of("two_way", torch.tensor(x).float(), torch.tensor(y).float())[0])
    assert got == pytest.approx(way(x, y) + way(x.T, y.T), rel=1e-5)


def test_smooth_ap__equals_its_formula() -> None:
    logit, target, mask = example(20)
    target = target.round()
    loss = loss_of("smooth_ap", anchor=0.0, temperature=0.7)
    got = loss(logit, target, mask)
    for c in range(3):
        valid = mask[:, c] > 0
        x, y = logit[valid, c].double().numpy(), target[valid, c].numpy()
        found = []
        for i in np.flatnonzero(y):
            above = 1 / (1 + np.exp(-(x - x[i]) / 0.7))
            above[i] = 0
            found.append((1 + above[y == 1].sum()) / (1 + above.sum()))
        assert float(got.value[c]) == pytest.approx(1 - np.mean(found), rel=1e-5)
        assert float(got.weight[c]) == valid.sum()


def test_smooth_ap__sharp_temperature_is_average_precision() -> None:
    from eval.metrics import average_precision

    logit, target, mask = example(60, seed=3)
    target = target.round()
    got = loss_of("smooth_ap", anchor=0.0, temperature=1e-4)(logit, target, mask)
    bits = (part.numpy().astype(np.uint8) for part in (target, mask))
    wanted = average_precision(logit.numpy(), *bits, kind="sklearn")
    np.testing.assert_allclose(1 - got.value.numpy(), wanted, rtol=1e-4)


def test_top_precision__sharp_temperature_is_precision_at_the_top() -> None:
    x = torch.arange(16, 0, -1.0)[:, None]
    y = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0.0])[
        :, None
    ]  # 8 positives: tops of 1 to 8
    loss = loss_of("top_precision", SHARE[:1], anchor=0.0, temperature=1e-3)
    # The image at the threshold itself counts by half: sigmoid(0).
    hits, seen = y[:, 0].cumsum(0) - y[:, 0] / 2, torch.arange(1, 17) - 0.5
    wanted = 1 - (hits / seen)[:8].mean()
    torch.testing.assert_close(loss(x, y, torch.ones_like(x)).value[0], wanted)


def test_focal__gamma_0_is_bce() -> None:
    logit, target = torch.linspace(-5, 5, 12).view(4, 3), torch.eye(4)[:, :3]
    torch.testing.assert_close(values_of("focal", logit, target, gamma=0.0), values_of("bce", logit, target))


def test_apl__without_changed_coefficients_is_asl() -> None:
    logit, target, _ = example()
    plain = values_of("apl", logit, target, apl_first=0.0, apl_second=0.0)
    torch.testing.assert_close(plain, values_of("asl", logit, target))


def test_asl__easy_negatives_give_no_gradient() -> None:
    logit = torch.tensor([[-4.0, -4.0, 1.0]], requires_grad=True)  # p = 0.018, below the margin of 0.05
    values_of("asl", logit, torch.zeros(1, 3)).sum().backward()
    assert logit.grad is not None
    assert logit.grad[0, 0] == 0
    assert logit.grad[0, 2] > 0


@pytest.mark.parametrize("name", ["proper", "tail"])
def test_proper__power_0_is_bce(name: str) -> None:
    logit, target, _ = example()
    got = values_of(name, logit, target, asymmetry=0.0, tail_power=0.0)
    torch.testing.assert_close(got, values_of("bce", logit, target))


def test_proper__closed_forms() -> None:
    x = torch.linspace(-50, 50, 41, dtype=torch.float64)[:, None]
    p = torch.sigmoid(x)
    ones, zeros = torch.ones_like(x), torch.zeros_like(x)

    def proper(a: float, target: Tensor) -> Tensor:
        return loss_of("proper", SHARE[:1], asymmetry=a)(x, target, ones).value

    bce = torch.nn.functional.softplus(x)
    torch.testing.assert_close(proper(1.0, ones), torch.sigmoid(-x))
    torch.testing.assert_close(proper(1.0, zeros), bce - p, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(proper(2.0, zeros), bce - p - p**2 / 2, rtol=1e-9, atol=1e-12)
    # At p = 1 the integral is the harmonic number of a; of 1/2: 2 - 2 log 2.
    wanted = 50 - (2 - 2 * math.log(2))
    assert float(proper(0.5, zeros)[-1, 0]) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("a", [0.1, 0.25, 0.5, 1.0, 2.0])
def test_proper__gradient_is_that_of_bce_times_a_power_of_p(a: float) -> None:
    logit = torch.linspace(-12, 12, 49, dtype=torch.float64).repeat(2, 1).requires_grad_()
    target = torch.stack([torch.zeros(49), torch.ones(49)])
    loss_of("proper", torch.full((49,), 0.1), asymmetry=a)(
        logit, target, torch.ones(2, 49)
    ).value.sum().backward()
    p = torch.sigmoid(logit.detach())
    torch.testing.assert_close(logit.grad, p**a * (p - target), rtol=1e-6, atol=1e-9)


def minimiser(name: str, p: float, **settings: float) -> float:
    """The logit at which the expected loss of an image that is positive with probability p is lowest."""
    grid = torch.linspace(-8, 8, 16_001, dtype=torch.float64)[:, None]
    share = torch.tensor([0.1])
    value = loss_of(name, share, **settings)(grid, torch.full_like(grid, p), torch.ones_like(grid)).value
    return float(grid[value.argmin(), 0])


@pytest.mark.parametrize("name", STRICTLY_PROPER)
@pytest.mark.parametrize("p", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_strictly_proper__the_minimiser_is_the_probability(name: str, p: float) -> None:
    for asymmetry in (0.25, 0.5, 1.0):
        found = minimiser(name, p, asymmetry=asymmetry)
        assert found == pytest.approx(math.log(p / (1 - p)), abs=2e-3)


@pytest.mark.parametrize("name", IMPROPER)
def test_improper__the_minimiser_is_elsewhere(name: str) -> None:
    # What the test above can see.
    assert abs(minimiser(name, 0.2) - math.log(0.2 / 0.8)) > 0.2


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_tail__a_fit_ends_at_the_probabilities(power: float) -> None:
    # The weights follow the scores at every step, and yet each group of images ends at its own probability.
    p = torch.tensor([0.02, 0.1, 0.3, 0.6, 0.9, 0.98]).repeat_interleave(5)[:, None]
    loss = loss_of("tail", SHARE[:1], tail_power=power, queue=30)
    logit = torch.zeros_like(p).requires_grad_()
    optimizer = torch.optim.Adam([logit], lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        reduce_terms(loss(logit, p, torch.ones_like(p))).backward()
        optimizer.step()
    torch.testing.assert_close(torch.sigmoid(logit.detach()), p, atol=2e-3, rtol=0)


def test_tail__gradient_is_that_of_bce_times_a_weight_of_coverage() -> None:
    logit = torch.tensor([[3.0], [1.0], [1.0], [-2.0]], requires_grad=True)
    target = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    mask = torch.ones(4, 1)
    loss_of("tail", SHARE[:1], tail_power=1.0, tail_floor=0.2)(logit, target, mask).value.sum().backward()
    share = torch.tensor([[0.125], [0.5], [0.5], [0.875]]).clamp(
        min=0.2
    )  # half of itself, half of an equal one
    scale = 1 / (1 - math.log(0.2))  # the integral of 1 / max(u, 0.2) over [0, 1]
    wanted = scale / share * (torch.sigmoid(logit.detach()) - target)
    torch.testing.assert_close(logit.grad, wanted, rtol=1e-4, atol=0)


def test_tail__equals_the_area_over_tailacc() -> None:
    # docs/losses.md: a proper loss with weight w(t) is, up to a constant, minus the integral over the thresholds t
    # of w(t) S(t) (Tailacc(t) - sigmoid(t)); here for BCE, w = 1, from the lowest threshold of the grid on.
    random = np.random.default_rng(0)
    x, y = random.normal(0, 2, 50), (random.random(50) < 0.4).astype(float)
    grid = np.linspace(-15, 15, 60_001)
    above = x[:, None] > grid
    hits = (above * y[:, None]).sum(axis=0)
    excess = hits - above.sum(axis=0) / (
        1 + np.exp(-grid)
    )  # n(t) (Tailacc(t) - sigmoid(t)), 0 for an empty tail
    area = excess.sum() * (grid[1] - grid[0])
    bce = np.logaddexp(0, x) - y * x
    # The constant: what a score at the lowest threshold would cost.
    floor = np.logaddexp(0, -15.0) - y * -15
    assert bce.sum() == pytest.approx(floor.sum() - area, abs=0.02)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss__is_finite_with_its_gradient_at_50(name: str, dtype: torch.dtype) -> None:
    logit = torch.tensor([[50.0, -50.0, 0.0], [-50.0, 50.0, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    with torch.autocast("cpu", torch.float16 if dtype == torch.float16 else torch.bfloat16):
        terms = loss_of(name, **SHARP)(logit, target, torch.ones(2, 3))
        value = reduce_terms(terms)
    assert value.dtype == terms.value.dtype == terms.weight.dtype == torch.float32
    value.backward()
    assert torch.isfinite(terms.value).all()
    assert logit.grad is not None
    assert torch.isfinite(logit.grad).all()
    assert value > 0


@pytest.mark.parametrize("name", LOSSES)
def test_loss__masked_pairs_have_no_gradient_and_no_influence(name: str) -> None:
    logit, target, mask = example()
    results = []
    for garbage in (0.0, 30.0, float("nan")):
        x = torch.where(mask > 0, logit, garbage).requires_grad_()
        y = torch.where(mask > 0, target, garbage)
        loss = loss_of(name, label_smoothing=0.1)
        first = reduce_terms(loss(x, y, mask))
        value = first + reduce_terms(loss(x, y, mask))  # the second time with a memory, where there is one
        value.backward()
        assert x.grad is not None
        assert (x.grad[mask == 0] == 0).all()
        assert (x.grad[mask > 0] != 0).any()
        results.append((value.detach(), x.grad))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("hole", ["class", "image", "batch"])
def test_loss__a_whole_class_image_or_batch_may_be_masked(name: str, hole: str) -> None:
    logit, target, mask = example()
    place: tuple[slice | int, ...] = {"class": (slice(None), 1), "image": (2,), "batch": (slice(None),)}[hole]
    mask[place] = 0
    loss = loss_of(name)
    for _ in range(2):
        x = logit.clone().requires_grad_()
        terms = loss(x, target, mask)
        value = reduce_terms(terms)
        value.backward()
        assert torch.isfinite(terms.value).all()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert (x.grad[mask == 0] == 0).all()
        assert (float(value.detach()) == 0) == (hole == "batch")


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_loss__classes_all_yes_or_all_no_are_finite(name: str, answer: float) -> None:
    logit = example()[0].requires_grad_()
    terms = loss_of(name)(logit, torch.full((12, 3), answer), torch.ones(12, 3))
    reduce_terms(terms).backward()
    assert torch.isfinite(terms.value).all()
    assert logit.grad is not None
    assert torch.isfinite(logit.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_loss__gradient_is_the_derivative(name: str) -> None:
    logit, target, mask = (part.double() for part in example(6))
    # `tail` weighs by a constant that jumps where two scores change places: no derivative through it.
    loss = loss_of(name, gamma_pos=1.0, queue=0).eval()
    if name == "tail":
        loss = loss_of(name, tail_power=0.0, queue=0).eval()
    if name == "top_precision":
        mask[:] = 1  # its thresholds are scores without gradient: checked with thresholds that do not move
        target[:] = torch.eye(3).double().repeat(2, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "sort", lambda self, **_: torch.return_types.sort((ORDERED, ORDERED)))
            assert torch.autograd.gradcheck(
                lambda x: reduce_terms(loss(x, target, mask)), logit.requires_grad_()
            )
        return
    assert torch.autograd.gradcheck(lambda x: reduce_terms(loss(x, target, mask)), logit.requires_grad_())


ORDERED = torch.linspace(2, -2, 6, dtype=torch.float64)[:, None].repeat(1, 3)


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), scale=st.sampled_from([0.01, 1.0, 10.0, 50.0]))
def test_loss__any_batch_is_finite_and_not_negative(name: str, seed: int, rows: int, scale: float) -> None:
    logit, target, mask = example(rows, seed)
    logit = (logit * scale).clamp(-50, 50).requires_grad_()
    terms = loss_of(name, **SHARP)(logit, target, mask)
    value = reduce_terms(terms)
    value.backward()
    assert terms.value.shape == terms.weight.shape
    assert torch.isfinite(terms.value).all()
    assert float(value.detach()) >= -1e-6
    assert logit.grad is not None
    assert torch.isfinite(logit.grad).all()
    assert (logit.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_loss__order_of_the_images_does_not_matter(name: str) -> None:
    logit, target, mask = example()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    loss = fill(loss_of(name))
    a, b = loss(logit, target, mask), loss(logit[order], target[order], mask[order])
    torch.testing.assert_close(reduce_terms(a), reduce_terms(b))


@pytest.mark.parametrize("name", LOSSES)
def test_loss__learns(name: str) -> None:
    # Two hundred steps on separable images: positives end above negatives of their class and of their image.
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(64, 3, generator=generator) < 0.3).float()
    logit = torch.randn(64, 3, generator=generator).requires_grad_()
    loss = loss_of(name)
    optimizer = torch.optim.Adam([logit], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        reduce_terms(loss(logit, target, torch.ones_like(target))).backward()
        optimizer.step()
    some = (target.sum(1) > 0) & (target.sum(1) < 3)
    lowest = torch.where(target > 0, logit, torch.inf).amin(1)[some]
    highest = torch.where(target > 0, -torch.inf, logit).amax(1)[some]
    assert (lowest > highest).float().mean() > 0.95


def test_loss__label_smoothing() -> None:
    logit, target, mask = example()
    got = loss_of("bce", label_smoothing=0.2)(logit, target, mask).value
    wanted = loss_of("bce")(logit, target * 0.8 + 0.1, mask).value
    torch.testing.assert_close(got, wanted)


def test_class_balanced__mean_weight_is_1_and_a_class_without_a_positive_keeps_1() -> None:
    loss = make_loss(LossConfig(name="class_balanced"), torch.tensor([0.5, 0.01, 0.0]))
    weight = loss(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3)).value[0] / math.log(2)
    assert float(weight[:2].mean()) == pytest.approx(1, rel=1e-5)
    assert weight[1] > weight[0]
    assert float(weight[2]) == pytest.approx(1, rel=1e-5)


def test_reduce_terms__is_the_weighted_mean() -> None:
    terms = Terms(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.0, 3.0]))
    assert float(reduce_terms(terms)) == pytest.approx(13 / 4)
    assert float(reduce_terms(terms, torch.tensor(2.0))) == pytest.approx(13 / 2)
    assert float(reduce_terms(terms, torch.tensor(0.5))) == pytest.approx(
        26
    )  # half a pair a process is no zero
    assert float(reduce_terms(Terms(torch.ones(2, 3), torch.zeros(2, 3)))) == 0.0


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_memory__keeps_the_last_images_and_is_restored(name: str) -> None:
    loss = loss_of(name, queue=20)
    for seed in range(3):
        logit, target, mask = example(8, seed)
        loss(logit.requires_grad_(), target, mask)
    saved = {key: value.clone() for key, value in loss.state_dict().items()}
    torch.testing.assert_close(saved["memory.rows"][-8:, 0], torch.where(mask > 0, logit.detach(), 0.0))
    loss.eval()(logit, target, mask)
    with torch.no_grad():
        loss.train()(logit, target, mask)
    assert torch.equal(loss.state_dict()["memory.rows"], saved["memory.rows"])  # only training steps are kept
    other = loss_of(name, queue=20)
    other.load_state_dict(saved)
    batch = example(8, 9)
    torch.testing.assert_close(other(*batch), loss(*batch))


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_memory__has_influence(name: str) -> None:
    batch = example(8, 3)
    fresh, full = loss_of(name), fill(loss_of(name))
    assert not torch.allclose(reduce_terms(fresh(*batch)), reduce_terms(full(*batch)))


def test_memory__batch_larger_than_it() -> None:
    loss = loss_of("tail", queue=5)
    logit, target, mask = example(8)
    loss(logit.requires_grad_(), target, mask)
    torch.testing.assert_close(loss.state_dict()["memory.rows"][:, 2], mask[-5:])


@pytest.mark.parametrize("name", LOSSES)
def test_loss__search_space_is_of_its_settings(name: str) -> None:
    logit, target, mask = example(16)
    default = LossConfig(name=name)
    for setting, (low, high, how) in LOSSES[name].space.items():
        assert low < high
        assert low > 0 or how == "uniform"
        assert low <= getattr(default, setting) <= high
        gradients = []
        for value in (low, high):
            x = logit.clone().requires_grad_()
            reduce_terms(loss_of(name, **{setting: float(value)})(x, target, mask)).backward()
            gradients.append(x.grad)
        assert not torch.allclose(*gradients)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("label_smoothing", 1.0, r"loss.label_smoothing must be in \[0, 1\)"),
        ("asymmetry", -0.1, "loss.asymmetry must not be negative"),
        ("queue", -1, "loss.queue must not be negative"),
        ("temperature", 0.0, "loss.temperature must be positive"),
        ("effective_share", 0.0, "loss.effective_share must be positive"),
        ("hill_lambda", 0.5, "loss.hill_lambda must be at least 1"),
        ("tail_power", 3.0, r"loss.tail_power must be in \[0, 2\]"),
        ("tail_floor", 0.0, r"loss.tail_floor must be in \(0, 1\]"),
    ],
)
def test_loss_config__says_the_rule(setting: str, value: float, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        LossConfig(**{setting: value})  # type: ignore[arg-type]


# A training of three steps, on one process and on two: same losses, same weights, same memory.

Trained = dict[str, tuple[list[float], Tensor, dict[str, Tensor]]]


def train_each(rank: int, world: int, average: Callable[[Tensor], None]) -> Trained:
    out: Trained = {}
    for name in LOSSES:
        generator = torch.Generator().manual_seed(0)
        weight = (torch.randn(5, 3, generator=generator) / 2).requires_grad_()
        loss, losses = loss_of(name, queue=24), []
        for step in range(3):
            inputs = torch.randn(16, 5, generator=generator)
            _, target, mask = example(16, step)
            mask[:4] *= mask[:4].roll(1, 0)  # the shares of valid pairs differ between the halves
            share = slice(rank * 16 // world, (rank + 1) * 16 // world)
            terms = loss(inputs[share] @ weight, target[share], mask[share])
            sums = torch.stack([(terms.value * terms.weight).sum().detach(), terms.weight.sum()])
            average(sums)
            weight.grad = None
            reduce_terms(terms, sums[1]).backward()
            assert weight.grad is not None
            average(weight.grad)
            with torch.no_grad():
                weight -= 0.5 * weight.grad
            losses.append(float((sums[0] / sums[1]).detach()))
        out[name] = losses, weight.detach(), loss.state_dict()
    return out


def mean_over_processes(tensor: Tensor) -> None:
    dist.all_reduce(tensor)
    tensor /= dist.get_world_size()


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(train_each(rank, 2, mean_over_processes), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_loss__same_on_one_process_and_two(tmp_path: Path) -> None:
    alone = train_each(0, 1, lambda tensor: None)
    mp.start_processes(one_of_two, (str(tmp_path),), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    for rank in range(2):
        together: Trained = torch.load(tmp_path / f"{rank}.pt")
        for name in LOSSES:
            torch.testing.assert_close(together[name], alone[name], rtol=1e-5, atol=1e-6)
