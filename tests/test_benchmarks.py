"""The benchmark of training steps runs on what the cache and the networks are today."""

from benchmarks import step
from models import BACKBONES


def test_every_backbone_is_timed_from_one_batch_and_from_the_cache(monkeypatch, capsys):
    flags = "step --batch 4 --clip-frames 16 --size 48 --width 0.125 --runs 1"
    monkeypatch.setattr("sys.argv", flags.split())
    step.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:2] for line in lines] == [
        [backbone, source] for backbone in BACKBONES for source in ("synthetic", "cache")
    ]
    assert all(float(line.split()[2]) > 0 for line in lines)
    assert {line.split()[-1] for line in lines[::2]} == {"100.0%"}
