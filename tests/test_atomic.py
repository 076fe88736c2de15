"""Files are complete or absent, with the permissions of any other file."""

import commands
import pytest

from elrt_keras.atomic import check_file, write_bytes

pytestmark = pytest.mark.tensorflow  # the same on every backend


def test_content_and_permissions(tmp_path):
    (tmp_path / "plain").write_bytes(b"new")
    for _ in range(2):  # a new file, then one in the place of another
        write_bytes(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"new"
        assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "file", tmp_path / "folder"):
        with pytest.raises(OSError, match=str(path)):
            write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "file", tmp_path / "link"
    for old in (b"old", None):  # a file, then a link that leads to none yet
        if old is None:
            target.unlink()
        else:
            target.write_bytes(old)
            link.symlink_to(target)
        check_file(link)
        write_bytes(link, b"new")
        assert link.is_symlink() and target.read_bytes() == b"new"
    link.unlink()
    link.symlink_to(tmp_path / "none" / "file")
    with pytest.raises(ValueError, match="folder that can be written. Received: path=.*link'"):
        check_file(link)


def test_the_output_of_a_process_is_no_file(tmp_path):
    # Standard output is a regular file there, but not a file of the user.
    program = "from elrt_keras.atomic import check_file; check_file('/dev/stdout', 'output')"
    done = commands.program(program, cwd=tmp_path)
    assert "Expected a path of a file. Received: output='/dev/stdout', a device or the like" in done.stderr


@pytest.mark.parametrize(
    "write",
    [
        "elrt_keras.atomic.write_bytes('file', bytes(2000))",
        pytest.param(
            "elrt_keras.RankPlan({f'layer{i}': ('svd', 8) for i in range(99)}).save('file')", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path, write):
    (tmp_path / "file").write_bytes(b"old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    # Its output is a file too: one line and no traceback.
    program = (
        f"import elrt_keras, elrt_keras.atomic\n{limit}\ntry:\n    {write}\nexcept OSError as error:\n    print(error)"
    )
    done = commands.program(program, cwd=tmp_path)
    assert "File too large: 'file'" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"
