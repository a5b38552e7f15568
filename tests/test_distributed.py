"""Several Gloo processes against one with the same global batch."""

import json
import sys

import pytest
import torch
from helpers import read_log, run_main, same_weights, start_ranks, train_command, weights
from torch import nn

import train
from configs.flags import parse_train_flags
from models import build_model
from retrieval import encode
from utils import distributed

pytestmark = pytest.mark.scripts


def run_ranks(count, folder, function):
    """What `function()` returns in each of `count` processes: a list."""
    for process in start_ranks(count, folder, call_and_save, function, folder):
        assert process.wait() == 0, process.output()
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def call_and_save(function, folder):
    with distributed.together():
        distributed.start("cpu")
        torch.save(function(), folder / f"{distributed.rank()}.pt")


# ==== the batch ====


def global_batch():
    torch.manual_seed(0)
    return torch.randn(12, 3, 16, 16, 16), torch.arange(12) // 3


def loss_and_gradients():
    """One backward pass of this process's clips of the batch, as train.py does it."""
    clips, labels = global_batch()
    torch.manual_seed(1)
    model = build_model("c3d", 16, width=0.0625).double().eval()  # no batch normalisation
    network = distributed.data_parallel(model)
    own = slice(distributed.rank(), None, distributed.world_size())
    codes, labels = distributed.gather_batch(network(clips[own].double()), labels[own])
    flags = ["--features", "x", "--output", "x", "--bits", "16", "--margin", "4"]
    args = parse_train_flags(None, [*flags, "--classification", "2"])
    criterion = train.build_criterion(4, torch.device("cpu"), args).double()
    loss, stats = criterion(codes, labels)
    (loss * distributed.world_size()).backward()
    parameters = [*model.named_parameters(), *criterion.named_parameters()]
    gradients = {name: p.grad.clone() for name, p in parameters}
    return loss.item(), {k: v.item() for k, v in stats.items()}, gradients


def exchange():
    rank, count = distributed.rank(), distributed.world_size()
    rows = torch.arange(rank, 7, count)[:, None] * torch.ones(1, 3)
    return {
        "loss": loss_and_gradients(),
        "gathered": distributed.gather_rows(rows, 7),
        "few": distributed.gather_rows(torch.full((1, 1), 5.0) if rank == 0 else None, 1),
        "any": [
            distributed.async_any([rank == 1, False])(),
            distributed.async_any([False, rank == 0])(),
        ],
        "main": distributed.is_main(),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes computed."""
    return run_ranks(2, tmp_path_factory.mktemp("two"), exchange)


def test_loss_and_gradients_are_those_of_one_process(two):
    loss, stats, gradients = loss_and_gradients()
    assert 0 < stats["active"] <= stats["valid"]
    for process in two:
        their_loss, their_stats, their_gradients = process["loss"]
        assert their_loss == pytest.approx(loss, abs=1e-6)
        assert their_stats == pytest.approx(stats)
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-6, atol=1e-9)


def test_rows_come_back_in_order_without_padding(two):
    for process in two:
        assert process["gathered"].tolist() == [[float(i)] * 3 for i in range(7)]
        assert process["few"].tolist() == [[5.0]], "one process has no row"
        assert process["any"] == [[True, False], [False, True]]
    assert [process["main"] for process in two] == [True, False]


# ==== batch normalisation ====


def train_statistics():
    """Five steps on batches of each process's own; the last layer is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[2].eval()
    network = distributed.data_parallel(model)
    for step in range(5):
        torch.manual_seed(100 * step + distributed.rank())
        network(torch.randn(6, 4) + distributed.rank()).sum().backward()
        distributed.average_statistics(network)
    return model.state_dict()


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_have_the_mean_of_their_statistics(count, tmp_path):
    """Running means are linear in the batches: their mean is that of processes left alone."""
    states = run_ranks(count, tmp_path, train_statistics)
    expected = []
    for rank in range(count):
        layer = nn.BatchNorm1d(4)
        for step in range(5):
            torch.manual_seed(100 * step + rank)
            layer(torch.randn(6, 4) + rank)
        expected.append(layer.state_dict())
    assert not torch.allclose(expected[0]["running_mean"], expected[1]["running_mean"], atol=0.1)
    for state in states:
        assert same_weights(states[0], state), "every bit, or ranks validate different networks"
        for name in ("running_mean", "running_var"):
            mean = torch.stack([layer[name] for layer in expected]).mean(0)
            torch.testing.assert_close(state[f"0.{name}"], mean, rtol=1e-5, atol=1e-6)
        assert torch.equal(state["2.running_mean"], torch.zeros(4)), "frozen"
        assert torch.equal(state["2.running_var"], torch.ones(4)), "frozen"


# ==== the scripts ====


def run_script_ranks(count, folder, command, patch=None):
    """Run a script as torchrun does, in processes that have imported PyTorch.

    Returns [(exit status, output)] in the order of ranks.
    """
    processes = start_ranks(count, folder, run_main, tuple(map(str, command)), patch)
    return [(process.wait(), process.output()) for process in processes]


def test_two_processes_train_and_test_as_one(demo, tmp_path, run_script):
    """Odd numbers of videos, so that they have unequal numbers; test_signals.py has torchrun."""
    run = tmp_path / "run"
    command = train_command(demo, run, "--cache", "disk", "--epochs", 2, "--eval-every", 1)
    ended = run_script_ranks(2, tmp_path / "trained", command)
    assert [status for status, _ in ended] == [0, 0], ended
    assert [output.count("val mAP") for _, output in ended] == [2, 0], "only one process prints"
    assert [record["epoch"] for record in read_log(run)] == [1, 2]
    tested = "test.py", "--checkpoint", run / "last.pt", "--pictures", 0, "--output"
    ended = run_script_ranks(2, tmp_path, (*tested, tmp_path / "two"))
    assert [status for status, _ in ended] == [0, 0], ended
    run_script(*tested, tmp_path / "one")
    one, two = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two")
    )
    assert one["metrics"] == two["metrics"] and one["curves"] == two["curves"]
    assert one["run"]["queries"] == two["run"]["queries"] == 6


@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_validate_the_network_that_is_saved(count, demo, tmp_path):
    """Also: the finished run stays as it is."""
    command = train_command(demo, tmp_path / "run", "--epochs", 1, "--workers", 0)
    ended = run_script_ranks(count, tmp_path, command, save_validated_weights)
    assert [status for status, _ in ended] == [0] * count, ended
    saved = weights(tmp_path / "run" / "best.pt")
    for rank in range(count):
        state = torch.load(tmp_path / "run" / f"validated{rank}.pt", weights_only=True)
        assert same_weights(state, saved)
    ended = run_script_ranks(count, tmp_path / "again", command)
    assert [status for status, _ in ended] == [0] * count and "resuming" in ended[0][1]
    assert same_weights(weights(tmp_path / "run" / "best.pt"), saved)


def save_validated_weights():
    """Have each process save the weights that it validates into the run folder."""
    build_encoder = encode.build_encoder

    def save_and_build(model, *rest):
        run = sys.argv[sys.argv.index("--output") + 1]
        torch.save(model.state_dict(), f"{run}/validated{distributed.rank()}.pt")
        return build_encoder(model, *rest)

    encode.build_encoder = save_and_build


def test_batches_that_two_processes_cannot_divide_are_refused(demo, tmp_path):
    command = train_command(demo, tmp_path / "run", "--classes-per-batch", 3)
    for status, output in run_script_ranks(2, tmp_path, command):
        assert status == 1 and "3 x 3 clips per batch cannot be divided among 2 processes" in output
