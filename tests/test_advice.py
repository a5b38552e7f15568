"""Natural mistakes with folders and archives: each message names the remedy."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from test_extract_frames import write_numbered

import extract_frames
import make_splits
from datasets.video_files import find_videos
from utils.errors import UserError

CLASSES = ("Archery", "Biking", "Diving")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current folder with an empty folder `data`, so that messages show the paths of a user."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def make_files(*paths):
    """Empty files; their names are all that these messages depend on."""
    for path in paths:
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def make_videos(root):
    make_files(*(f"{root}/{name}/v_{name}_g01_c01.avi" for name in CLASSES))


def extract(*flags):
    extract_frames.main(extract_frames.build_parser().parse_args(list(map(str, flags))))


def split(*flags):
    make_splits.main(make_splits.build_parser().parse_args([*flags, "--output", "splits"]))


def refuse(function, *flags):
    """The message with which a script refuses these flags; nothing may be written before."""
    with pytest.raises(UserError) as error:
        function(*flags)
    message = str(error.value)
    assert "\n" not in message
    assert not Path("frames").exists() and not Path("splits").exists()
    return message


# ==== archives that are not unpacked ====


@pytest.mark.parametrize(
    ("videos", "archive", "command"),
    [
        ("data/UCF-101", "data/UCF101.rar", "unrar x data/UCF101.rar data/"),
        ("data/UCF-101", "data/UCF101.zip", "unzip data/UCF101.zip -d data"),
        ("data/hmdb51_org", "data/hmdb51_org.rar", "unrar x data/hmdb51_org.rar data/"),
        ("data/my videos", "data/my videos.tar.gz", "tar -xf 'data/my videos.tar.gz' -C data"),
    ],
)
def test_an_archive_beside_a_missing_folder_is_named(videos, archive, command):
    make_files(archive, "data/unrelated.rar")
    expected = f"--videos {videos}: no such folder; {archive} is there; unpack it: {command}"
    assert refuse(extract, "--videos", videos, "--frames", "frames") == expected


def test_an_archive_in_the_folder_or_given_as_the_folder_is_named():
    make_files("data/UCF-101/UCF101.rar")
    command = "unpack it: unrar x data/UCF-101/UCF101.rar data/UCF-101/"
    message = refuse(extract, "--videos", "data/UCF-101", "--frames", "frames")
    assert message.endswith(f"data/UCF-101/UCF101.rar is there; {command}")
    message = refuse(extract, "--videos", "data/UCF-101/UCF101.rar", "--frames", "frames")
    assert message.endswith(f"data/UCF-101/UCF101.rar is there; {command}")
    with pytest.raises(UserError, match="UCF101.rar is there; unpack it"):
        find_videos("data/UCF-101")


def test_a_folder_without_videos_suggests_one_beside_it():
    make_videos("data/demo/videos")
    make_files("data/demo/frames/Archery/v_Archery_g01_c01/000000.jpg")
    with pytest.raises(UserError) as error:
        find_videos("data/demo/frames")
    message = "--videos data/demo/frames: no video there; did you mean data/demo/videos?"
    assert str(error.value) == message
    with pytest.raises(UserError, match="no video there .*avi"):
        find_videos("data/demo/frames/Archery")


@pytest.mark.scripts
def test_the_class_archives_of_hmdb51_are_unpacked_by_one_loop():
    make_files(*(f"data/hmdb51_org/{name}.rar" for name in ("brush_hair", "cartwheel", "catch")))
    message = refuse(extract, "--videos", "data/hmdb51_org", "--frames", "frames")
    assert "3 .rar archives are there, such as data/hmdb51_org/brush_hair.rar" in message
    loop = message.partition("unpack them: ")[2]
    assert loop == 'for f in data/hmdb51_org/*.rar; do unrar x "$f" data/hmdb51_org/; done'
    echoed = subprocess.check_output(["sh", "-c", loop.replace("unrar", "echo")], text=True)
    assert len(echoed.splitlines()) == 3, "a shell can run it"


def test_class_archives_without_their_folder_are_noted(capsys):
    write_numbered(Path("data/hmdb51_org/clap/v.avi").absolute(), 3)
    make_files("data/hmdb51_org/clap.rar", "data/hmdb51_org/wave.rar")
    extract("--videos", "data/hmdb51_org", "--frames", "frames", "--num-frames", 2)
    note = capsys.readouterr().out.splitlines()[0]
    assert note.startswith("note: data/hmdb51_org/wave.rar is there; unpack it: unrar x")


@pytest.mark.parametrize(
    ("dataset", "folder", "archive"),
    [
        ("ucf101", "data/ucfTrainTestlist", "data/UCF101TrainTestSplits-RecognitionTask.zip"),
        ("hmdb51", "data/testTrainMulti_7030_splits", "data/test_train_splits.rar"),
    ],
)
def test_archives_of_official_lists_are_named(dataset, folder, archive):
    make_files(archive)
    flags = "--dataset", dataset, "--frames", "frames", "--annotations"
    message = refuse(split, *flags, folder)
    assert f"--annotations {folder}: no such folder; {archive} is there; unpack it: " in message
    make_files(f"{folder}/{Path(archive).name}")
    assert f"{folder}/{Path(archive).name} is there" in refuse(split, *flags, folder)


# ==== one level too high or too low ====


def test_videos_one_level_too_high():
    make_videos("data/UCF-101/UCF-101")
    message = refuse(extract, "--videos", "data/UCF-101", "--frames", "frames")
    assert message.endswith("did you mean data/UCF-101/UCF-101?")
    message = refuse(extract, "--videos", "data", "--frames", "frames")
    assert message.endswith("did you mean data/UCF-101/UCF-101?")


def test_videos_one_level_too_low():
    make_videos("data/UCF-101")
    message = refuse(extract, "--videos", "data/UCF-101/Archery", "--frames", "frames")
    assert "its videos are in no class folder; did you mean its parent data/UCF-101?" in message
    make_files("data/mine/a.mp4")
    message = refuse(extract, "--videos", "data/mine", "--frames", "frames")
    assert message.endswith("its videos are in no class folder; make one per class")


def test_a_misspelt_folder_and_a_folder_without_videos():
    make_videos("data/UCF-101")
    message = refuse(extract, "--videos", "data/UCF101", "--frames", "frames")
    assert message == "--videos data/UCF101: no such folder; did you mean data/UCF-101?"
    make_files("data/other/notes.txt")
    message = refuse(extract, "--videos", "data/other", "--frames", "frames")
    assert message.endswith("it holds no videos at all")
    message = refuse(extract, "--videos", "data/other/notes.txt", "--frames", "frames")
    assert message.endswith("is a file, not a folder")


def test_official_lists_one_level_too_high_or_low_or_of_the_other_data_set():
    lists = "data/ucfTrainTestlist"
    make_files(f"{lists}/classInd.txt", "data/hmdb/wave_test_split1.txt")
    flags = "--dataset", "ucf101", "--frames", "frames", "--annotations"
    assert refuse(split, *flags, "data") == f"--annotations data: did you mean {lists}?"
    message = refuse(split, *flags, f"{lists}/classInd.txt")
    assert message.endswith(f"did you mean {lists}?")
    message = refuse(split, *flags, "data/hmdb")
    assert message.endswith("holds the lists of hmdb51; did you mean --dataset hmdb51?")
    make_files("data/other/readme.txt")
    assert "no classInd.txt there" in refuse(split, *flags, "data/other")


@pytest.fixture
def lists(here):
    """Official lists of one class of two videos."""
    (here / "lists").mkdir()
    (here / "lists" / "classInd.txt").write_text("1 Archery\n")
    (here / "lists" / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    (here / "lists" / "testlist01.txt").write_text("Archery/v_Archery_g02_c01.avi\n")
    return here / "lists"


@pytest.mark.parametrize("dataset", ["ucf101", "folder"])
def test_frames_one_level_too_high_or_low_or_the_videos(dataset, lists):
    make_videos("data/UCF-101")
    make_files("data/ucf101/frames/Archery/v_Archery_g01_c01/000000.jpg")
    settings = Path("data/ucf101/frames/extraction.json")
    settings.write_text('{"num_frames": 1}')
    flags = "--dataset", dataset, "--annotations", str(lists), "--frames"
    for wrong in ("data/ucf101", "data/ucf101/frames/Archery", "data/ucf101/frame"):
        message = refuse(split, *flags, wrong)
        assert message.endswith("did you mean data/ucf101/frames?"), message
    message = refuse(split, *flags, "data/UCF-101")
    assert message.endswith("it holds videos: run extract_frames.py --videos data/UCF-101 first")


# ==== flags and outputs ====


def test_frames_too_small_to_be_useful_are_refused(run_script):
    command = ["extract_frames.py", "--videos", "v", "--frames", "f"]
    error = run_script(*command, "--size", 4, 4, status=2).stderr
    assert "--size: must be a whole number of at least 16, not '4'" in error
    assert len(error.splitlines()) == 1


def test_outputs_that_cannot_be_written_fail_before_the_work(lists):
    make_videos("data/UCF-101")
    make_files("file")
    with pytest.raises(UserError, match="--frames file/frames: .*Not a directory"):
        extract("--videos", "data/UCF-101", "--frames", "file/frames")
    flags = "--dataset", "ucf101", "--annotations", str(lists), "--frames", "nowhere"
    with pytest.raises(UserError, match="--output file: .*Not a directory"):
        make_splits.main(make_splits.build_parser().parse_args([*flags, "--output", "file"]))


@pytest.mark.scripts
@pytest.mark.parametrize("module", ["extract_frames", "make_splits", "datasets.synthetic"])
def test_scripts_of_the_data_do_not_import_pytorch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
