import copy

import pytest
import torch
from torch import nn

from train.noise import Dropout, DropPath, noise_of


def started(model: nn.Module, step: int, first: int, last: int, seed: int = 5) -> nn.Module:
    noise_of(model).start(seed, step, first, last, 64)
    return model.train()


def test_dropout__any_number_of_processes_draws_the_same() -> None:
    model, x = nn.Sequential(Dropout(0.4), nn.Linear(7, 7), Dropout(0.2)), torch.randn(64, 7)
    with torch.no_grad():
        whole = started(model, 3, 0, 64)(x)
        parts = [started(model, 3, k, k + 16)(x[k : k + 16]) for k in range(0, 64, 16)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert (whole == 0).any()


def test_dropout__zeroes_its_share_and_keeps_the_mean() -> None:
    model = nn.Sequential(Dropout(0.3))
    kept = torch.stack([started(model, step, 0, 64)(torch.ones(64, 500)) for step in range(10)])
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    # 320,000 numbers: 5 standard deviations of the share are 0.0041; of one column's (640), 0.091.
    assert abs(float((kept == 0).float().mean()) - 0.3) < 0.0041
    assert float(((kept == 0).float().mean((0, 1)) - 0.3).abs().max()) < 0.091
    assert float(((kept == 0).float().mean((0, 2)) - 0.3).abs().max()) < 0.033


def test_dropout__steps_seeds_rows_columns_and_modules_differ_without_correlation() -> None:
    model, x = nn.ModuleList([Dropout(0.5), Dropout(0.5)]), torch.ones(64, 256)
    masks = [
        started(model, step, 0, 64, seed)[i](x) - 1 for step, seed, i in ((0, 5, 0), (1, 5, 0), (0, 6, 0))
    ]
    started(model, 0, 0, 64)
    masks.append(model[1](x) - 1)
    masks += [masks[0].roll(1, 0), masks[0].roll(1, 1)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            # 16,384 pairs of -1 and 1: the mean product's standard deviation is 0.0078.
            assert abs(float((one * other).mean())) < 0.04
    # The same coordinates give the same numbers again, whatever was drawn between.
    assert torch.equal(started(model, 0, 0, 64)[0](x) - 1, masks[0])


def test_drop_path__drops_whole_images() -> None:
    model = nn.Sequential(DropPath(0.25))
    out = torch.cat([started(model, step, 0, 64)(torch.ones(64, 3, 2, 2)) for step in range(50)])
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert abs(float((out[:, 0, 0, 0] == 0).float().mean()) - 0.25) < 0.04


@pytest.mark.parametrize("noisy", [Dropout, DropPath])
def test_noise__does_nothing_in_evaluation_or_at_zero(noisy: type[nn.Module]) -> None:
    x = torch.randn(4, 5)
    assert noisy(0.9).eval()(x) is x
    assert noisy(0.0).train()(x) is x


def test_noise__without_a_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"needs noise_of\(model\)\.start"):
        Dropout(0.5).train()(torch.ones(2, 2))
    model = started(nn.Sequential(DropPath(0.5)), 0, 0, 8)
    with pytest.raises(RuntimeError, match="was started for 8 rows, but the batch has 2"):
        model(torch.ones(2, 2))
    with pytest.raises(ValueError, match="rows 4 to 9 do not lie in a batch of 8"):
        noise_of(model).start(0, 0, 4, 9, 8)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), but got 1"):
        Dropout(1.0)


def test_noise_of__a_copy_has_its_own_and_the_state_dict_has_none() -> None:
    model = started(nn.Sequential(Dropout(0.5), Dropout(0.5)), 0, 0, 4)
    twin = copy.deepcopy(model)
    noise_of(twin).start(0, 1, 0, 4, 64)
    assert noise_of(model) is model[0].noise is model[1].noise
    assert noise_of(twin) is not noise_of(model)
    assert [module.number for module in twin] == [0, 1]
    assert not model.state_dict()


def test_noise__keeps_the_type_and_takes_the_largest_coordinates() -> None:
    model = nn.Sequential(Dropout(0.5))
    noise_of(model).start(2**31 - 1, 2**40, 60, 64, 64)
    out = model(torch.ones(4, 8, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_noise__compiles_into_one_graph_for_all_steps() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Dropout(0.5), DropPath(0.5))
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled, x = torch.compile(model, backend=count, fullgraph=True), torch.randn(16, 8)
    for step in range(3):
        started(model, step, 0, 16)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1
