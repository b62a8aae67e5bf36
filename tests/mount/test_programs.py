"""Ordinary programs, as they are installed, work in a mount as they do on a disk."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import mmap
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import Mount, mounted
from PIL import Image

MIB = 1 << 20
COMMITS = 150
DATE_NS = 1_700_000_000_123_456_789
ENVIRONMENT = {
    **os.environ,
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "A"), ("EMAIL", "a@example.org"))
    },
}


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program} here")


def run(
    *command: object, cwd: Path | None = None, stdin: bytes = b"", allowed: tuple[int, ...] = (0,)
) -> str:
    """Run a program; return its standard output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        check=False,
        env=ENVIRONMENT,
        timeout=180,
    )
    out, err = (text.decode("utf-8", "replace") for text in (done.stdout, done.stderr))
    assert done.returncode in allowed, f"{command}: {done.returncode}\n{out}\n{err}"
    return out


@pytest.fixture
def folder(mount: Mount) -> Iterator[Path]:
    """A folder in a mount that has no reason to report an error of its own."""
    path = mount.path / "work"
    path.mkdir()
    yield path
    if mount.process.poll() is None:
        assert mount.status()["errors_total"] == 0, mount.log


@contextlib.contextmanager
def remounted(mount: Mount) -> Iterator[None]:
    """The store in a new mount at the same place: what is read then comes from the disk."""
    assert mount.end() == 0, mount.log
    with mounted(mount.store, mount.path, "--prefetch", "0") as again:
        yield
        assert again.status()["errors_total"] == 0, again.log


def make_tree(root: Path) -> Path:
    """Make a folder of about everything that a folder can hold."""
    numbers = random.Random(1)
    for name in ("", "empty", "deep/er/est", "sticky", "closed"):
        (root / name).mkdir(parents=True)
    for name in (" leading blank", "-rf", "line\nbreak", "日本語 é", "x" * 255, "per%cent*?[a]"):
        (root / name).write_bytes(name.encode())
    (Path(os.fsdecode(os.fsencode(root) + b"/not \xff\xfe utf-8"))).write_bytes(b"bytes")
    for size_bytes in (0, 1, 4095, 4097, 131_071, 131_073, 700_001):
        (root / "deep" / "er" / f"{size_bytes}").write_bytes(numbers.randbytes(size_bytes))
    for number in range(120):
        (root / "deep" / "er" / "est" / f"{number:03}.txt").write_text(f"file {number}\n" * number)
    (root / "hard").write_text("one file, three names")
    for name in ("hard too", "deep/hard"):
        os.link(root / "hard", root / name)
    for name, target in (
        ("link", "hard"),
        ("dangling", "no such"),
        ("deep/up", ".."),
        ("long", "y" * 4000),
    ):
        (root / name).symlink_to(target)
    os.link(root / "link", root / "link too", follow_symlinks=False)
    os.mkfifo(root / "pipe", 0o620)
    with (root / "sparse").open("wb") as file:
        for offset in (0, 3 * MIB, 9 * MIB):
            file.seek(offset)
            file.write(numbers.randbytes(5000))
        file.truncate(12 * MIB)
    for name, mode in (
        ("hard", 0o640),
        ("deep/er/1", 0o000),
        ("deep/er/4097", 0o4755),
        ("deep/er/131071", 0o2711),
        ("sticky", 0o1777),
        ("closed", 0o500),
    ):
        (root / name).chmod(mode)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(DATE_NS, DATE_NS + number * 1_000_000_007), follow_symlinks=False)
    os.utime(root, ns=(DATE_NS, DATE_NS))
    return root


def tell(path: Path) -> tuple[object, ...]:
    """What a copy of a file must have in common with it."""
    status = path.lstat()
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = path.readlink()
    elif stat.S_ISREG(status.st_mode):
        content = hashlib.sha256(path.read_bytes()).digest()
    size_bytes = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    links = status.st_nlink
    return status.st_mode, links, status.st_uid, size_bytes, status.st_mtime_ns, content


def tell_all(root: Path) -> dict[Path, tuple[object, ...]]:
    return {path.relative_to(root): tell(path) for path in [root, *root.rglob("*")]}


def names_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


# Version control and archives


def make_repository(path: Path) -> None:
    """Make a repository of many small commits with one process."""
    stream = []
    for number in range(COMMITS):
        text = f"commit {number}\n" * (number + 1)
        message = f"change {number}"
        stream.append(f"commit refs/heads/main\nmark :{number + 1}\n")
        stream.append(f"committer A <a@example.org> {1_700_000_000 + number} +0000\n")
        stream.append(f"data {len(message)}\n{message}\n")
        if number:
            stream.append(f"from :{number}\n")
        stream += [
            f'M 100644 inline "{name}"\ndata {len(text)}\n{text}\n'
            for name in (f"folder {number % 7}/{number}.txt", "common.txt")
        ]
    run("git", "init", "-q", "-b", "main", path)
    run("git", "fast-import", "--quiet", cwd=path, stdin="".join(stream).encode())
    run("git", "reset", "-q", "--hard", cwd=path)


@needs("git")
def test_git_clones_checks_commits_and_collects_garbage(
    mount: Mount, folder: Path, tmp_path: Path
) -> None:
    origin, clone = tmp_path / "origin", folder / "clone"
    make_repository(origin)
    run("git", "clone", "-q", f"file://{origin}", clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    (clone / "common.txt").write_text("changed\n")
    (clone / "new.txt").write_text("new\n")
    run("git", "mv", "folder 1", "moved", cwd=clone)
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-q", "-m", "mine", cwd=clone)
    run("git", "checkout", "-q", f"HEAD~{COMMITS // 2}", cwd=clone)
    run("git", "checkout", "-q", "main", cwd=clone)
    run("git", "gc", "-q", "--aggressive", "--prune=now", cwd=clone)
    run("git", "clone", "-q", clone, folder / "of hard links")
    with remounted(mount):
        for path in (clone, folder / "of hard links"):
            run("git", "fsck", "--full", "--strict", cwd=path)
            assert run("git", "status", "--porcelain", cwd=path) == ""
            assert run("git", "rev-list", "--count", "HEAD", cwd=path).strip() == f"{COMMITS + 1}"
        assert run("git", "rev-parse", "HEAD~1", cwd=clone) == run(
            "git", "rev-parse", "HEAD", cwd=origin
        )


@needs("tar")
def test_tar_unpacks_and_then_finds_no_difference(
    mount: Mount, folder: Path, tmp_path: Path
) -> None:
    source, archive = make_tree(tmp_path / "source"), tmp_path / "all.tar"
    run("tar", "c", "--format=posix", "--sparse", "-f", archive, "-C", source, ".")
    run("tar", "x", "-p", "-f", archive, "-C", folder)
    assert run("tar", "d", "-f", archive, "-C", folder) == ""
    with remounted(mount):
        assert run("tar", "d", "-f", archive, "-C", folder) == ""
        assert tell_all(folder) == tell_all(source)
        assert (folder / "sparse").stat().st_blocks * 512 < MIB
        again = tmp_path / "again.tar"
        run("tar", "c", "--format=posix", "--sparse", "-f", again, "-C", folder, ".")
        assert run("tar", "d", "-f", again, "-C", source) == ""


@needs("unzip")
def test_unzip_unpacks_names_dates_and_bytes(mount: Mount, folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "all.zip"
    contents = {f"d{n % 5}/ü {n}.bin": random.Random(n).randbytes(n * 997) for n in range(200)}
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, date_time=(2001, 2, 3, 4, 5, 6))
            entry.compress_type = zipfile.ZIP_DEFLATED if len(data) % 2 else zipfile.ZIP_STORED
            entry.external_attr = (stat.S_IFREG | 0o604) << 16
            packed.writestr(entry, data)
    run("unzip", "-q", archive, "-d", folder)
    with remounted(mount):
        assert {name: (folder / name).read_bytes() for name in contents} == contents
        assert {stat.S_IMODE((folder / name).stat().st_mode) for name in contents} == {0o604}
        assert len({(folder / name).stat().st_mtime for name in contents}) == 1
        assert run("unzip", "-q", "-o", archive, "-d", folder) == ""


# Copying


@needs("rsync")
@pytest.mark.parametrize("how", ["--whole-file", "--inplace", "--sparse"])
def test_rsync_copies_once_and_nothing_the_second_time(
    mount: Mount, folder: Path, tmp_path: Path, how: str
) -> None:
    source = make_tree(tmp_path / "source")
    sync = ("rsync", "-a", "-H", "--checksum", "--itemize-changes", how, f"{source}/", f"{folder}/")
    assert ">f+++++++++ -rf" in run(*sync)
    assert tell_all(folder) == tell_all(source)
    assert run(*sync) == ""
    with remounted(mount):
        assert run(*sync) == ""
        (source / "deep" / "er" / "700001").write_bytes(b"shorter")
        (source / "-rf").unlink()
        changed = run(*sync, "--delete").splitlines()
        assert {line.split()[-1] for line in changed} == {"./", "-rf", "deep/er/700001"}
        assert run(*sync, "--delete") == ""
        there, here = tell_all(folder), tell_all(source)
        # rsync dates the folder before it removes from it, on every disk.
        del there[Path()], here[Path()]
        assert there == here


@needs("rsync")
def test_rsync_takes_pictures_out_and_finds_them_unchanged(mount: Mount, tmp_path: Path) -> None:
    pictures = mount.path / "jpeg"
    copy = ("rsync", "-a", "--checksum", "--itemize-changes", f"{pictures}/", f"{tmp_path}/out/")
    assert run(*copy).count(">f+++++++++") == 2
    assert run(*copy) == ""


def test_cp_copies_into_the_mount_and_within_it(mount: Mount, folder: Path, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    copy, second = folder / "copy", folder / "second"
    run("cp", "-a", "--reflink=auto", source, copy)
    os.setxattr(copy / "hard", "user.mark", b"kept")
    run("cp", "-a", "--reflink=auto", "--sparse=auto", copy, second)
    run("cp", "-al", copy, folder / "links")
    with remounted(mount):
        shutil.rmtree(folder / "links")
        expected = tell_all(source)
        assert tell_all(copy) == expected
        assert tell_all(second) == expected
        assert os.getxattr(second / "hard", "user.mark") == b"kept"
        assert (second / "sparse").stat().st_blocks * 512 < MIB


@needs("find")
@needs("md5sum")
def test_find_du_diff_and_md5sum_see_what_is_there(
    mount: Mount, folder: Path, tmp_path: Path
) -> None:
    source = make_tree(tmp_path / "source")
    (source / "pipe").unlink()  # which diff has nothing to say about but that it is there
    run("cp", "-a", source, folder / "copy")
    sums = run("find", ".", "-type", "f", "-exec", "md5sum", "-z", "{}", "+", cwd=source)
    (tmp_path / "sums").write_bytes(sums.replace("\0", "\n").encode())
    copy = folder / "copy"
    plain = [name for name in names_of(source) if "\n" not in name and name.isascii()]
    with remounted(mount):
        assert run("diff", "-r", "--no-dereference", source, copy) == ""
        for what in ("-type f", "-type l", "-links +1", "-size +200k", "-perm -4000", "-empty"):
            listing = ("find", ".", *what.split(), "-printf", "%p %y %m %n %s %l %T@\\0")
            here, there = (sorted(run(*listing, cwd=root).split("\0")) for root in (source, copy))
            # Folders have sizes of their own.
            assert [line for line in here if " d " not in line] == [
                line for line in there if " d " not in line
            ]
        found = [path.lstat() for path in copy.rglob("*")]
        sizes = {one.st_ino: one.st_size for one in found if not stat.S_ISDIR(one.st_mode)}
        used = run("du", "-s", "--apparent-size", "-B1", copy).split()[0]
        assert int(used) == sum(sizes.values())
        for name in plain:
            if stat.S_ISREG((source / name).lstat().st_mode):
                lines = (run("md5sum", path / name).split()[0] for path in (source, copy))
                assert len(set(lines)) == 1, name
        (copy / "deep" / "er" / "4095").write_bytes(b"other")
        assert "differ" in run("diff", "-rq", "--no-dereference", source, copy, allowed=(1,))
        run("find", copy, "-name", "*.txt", "-delete")
        assert len(names_of(copy)) == len(names_of(source)) - 120


# Databases


def fill(database: sqlite3.Connection, *, first: int, count: int) -> None:
    for number in range(first, first + count):
        with database:
            database.execute("insert into t values (?, ?)", (number, random.randbytes(700)))
            if number % 5 == 0:
                database.execute("delete from t where number = ?", (number - 3,))


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_keeps_its_transactions(mount: Mount, folder: Path, journal: str) -> None:
    path = folder / "all.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
        database.execute("pragma mmap_size = 100000000")
        database.execute("create table t (number integer primary key, bytes blob)")
        with database:
            rows = ((-number, random.randbytes(2000)) for number in range(1, 1001))
            database.executemany("insert into t values (?, ?)", rows)
        fill(database, first=0, count=10)
        database.execute("delete from t")
        database.rollback()
        # Another connection sees what is committed; with WAL through the mapped index.
        with contextlib.closing(sqlite3.connect(path)) as reader:
            assert reader.execute("select count(*) from t").fetchone() == (1008,)
        database.execute("vacuum")
        if journal == "wal":
            assert {entry.name for entry in folder.iterdir()} == {
                "all.db",
                "all.db-shm",
                "all.db-wal",
            }
    with remounted(mount), contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert database.execute("select count(*) from t").fetchone() == (1008,)


@needs("sqlite3")
def test_two_sqlite_processes_share_a_database(folder: Path) -> None:
    path = folder / "all.db"
    run("sqlite3", path, "pragma journal_mode = wal; create table t (number, bytes);")
    with contextlib.closing(sqlite3.connect(path)) as reader:
        for number in range(5):
            run("sqlite3", path, f"insert into t values ({number}, hex(randomblob(9000)));")
            assert reader.execute("select count(*) from t").fetchone() == (number + 1,)
        reader.execute("begin immediate")
        refused = run("sqlite3", path, "insert into t values (9, 9);", allowed=(5,))
        assert refused == ""  # "database is locked" is what it says on standard error
        reader.rollback()
    assert run("sqlite3", path, "pragma integrity_check; select count(*) from t;") == "ok\n5\n"


# "extra", as the journal is not removed durably otherwise: on no disk.
WRITER = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1])
database.execute(f"pragma journal_mode = {sys.argv[2]}")
database.execute("pragma synchronous = extra")
database.execute("create table t (number integer primary key, bytes blob)")
for number in range(1_000_000):
    with database:
        database.execute("insert into t values (?, ?)", (number, os.urandom(3000)))
    print(number, flush=True)
"""


@pytest.mark.parametrize("killed", ["the writer", "the daemon"])
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_has_all_that_was_committed_after_a_kill(
    mount: Mount, folder: Path, journal: str, killed: str
) -> None:
    path = folder / "all.db"
    command = [sys.executable, "-c", WRITER, str(path), journal]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        seen = [int(line) for line in itertools.islice(writer.stdout, 12)]
        victim = writer if killed == "the writer" else mount.process
        victim.kill()
        victim.wait()
        writer.kill()
        seen += [int(line) for line in writer.stdout]
    if killed == "the writer":
        check_committed(path, len(seen))
        mount.end()
    with mounted(mount.store, mount.path, "--prefetch", "0"):
        check_committed(path, len(seen))


def check_committed(path: Path, least: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
        numbers = [number for (number,) in database.execute("select number from t order by 1")]
    assert numbers == list(range(len(numbers)))
    # What was committed as the killer struck need not have been reported any more.
    assert least <= len(numbers) <= least + 1


# Random writes


@needs("fio")
@pytest.mark.parametrize(
    "how",
    [
        ("--ioengine=psync", "--bs=4k", "--fsync=500"),
        ("--ioengine=psync", "--bs=4k", "--direct=1"),
        ("--ioengine=psync", "--bsrange=1k-300k", "--bs_unaligned"),
        ("--ioengine=mmap", "--bs=4k"),
        ("--ioengine=libaio", "--bs=16k", "--iodepth=16", "--direct=1"),
    ],
    ids=["fsync", "direct", "unaligned", "mmap", "libaio"],
)
def test_fio_verifies_what_it_wrote(
    mount: Mount, folder: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    job = ("fio", "--name=j", f"--filename={folder}/data", "--size=6m", "--rw=randwrite", *how)
    check = ("--verify=crc32c", "--verify_fatal=1", "--randseed=7", "--fallocate=none")
    run(*job, *check, cwd=tmp_path)
    with remounted(mount):
        run(*job, *check, "--verify_only", cwd=tmp_path)
        with (folder / "data").open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"\0" * 9000)
        run(*job, *check, "--verify_only", cwd=tmp_path, allowed=(1,))


def test_shared_mappings_are_files(mount: Mount, folder: Path) -> None:
    path = folder / "mapped"
    size_bytes, numbers = 3 * MIB, random.Random(2)
    expected = bytearray(size_bytes)
    with path.open("w+b") as file:
        file.truncate(size_bytes)
        with mmap.mmap(file.fileno(), 0) as one, mmap.mmap(file.fileno(), 0) as other:
            for _ in range(300):
                offset = numbers.randrange(size_bytes - 10_000)
                data = numbers.randbytes(numbers.randrange(1, 10_000))
                one[offset : offset + len(data)] = data
                expected[offset : offset + len(data)] = data
            assert other[:] == expected
            one.flush()
        assert run("md5sum", path).split()[0] == hashlib.md5(expected).hexdigest()
        # A write beside a mapping is seen in it.
        with mmap.mmap(file.fileno(), 0) as one:
            os.pwrite(file.fileno(), b"beside", 100)
            expected[100:106] = b"beside"
            assert one[:] == expected
    with remounted(mount):
        assert path.read_bytes() == expected


# Editors


@needs("vim")
@pytest.mark.parametrize("backupcopy", ["no", "yes"])
def test_vim_saves_and_keeps_a_backup(mount: Mount, folder: Path, backupcopy: str) -> None:
    path = folder / "notes.txt"
    path.write_text("old line\n" * 1000)
    path.chmod(0o640)
    ino = path.stat().st_ino
    options = f"set nocompatible backup backupskip= backupcopy={backupcopy} fsync"
    commands = (options, "%s/old/new/", "wq")
    words = [word for command in commands for word in ("-c", command)]
    run("vim", "-es", "-u", "NONE", "-i", "NONE", "-X", *words, path)
    with remounted(mount):
        assert path.read_text() == "new line\n" * 1000
        assert (folder / "notes.txt~").read_text() == "old line\n" * 1000
        assert names_of(folder) == {"notes.txt", "notes.txt~"}
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert (path.stat().st_ino == ino) == (backupcopy == "yes")


def test_a_save_by_rename_is_whole_even_after_a_kill(mount: Mount, folder: Path) -> None:
    path, temporary = folder / "settings", folder / "settings.new"
    path.write_bytes(b"0" * 10_000)
    with path.open("rb") as before:
        for number in range(1, 6):
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, b"%d" % number * 10_000)
            os.fsync(fd)
            os.close(fd)
            temporary.rename(path)
            directory = os.open(folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)
        assert before.read() == b"0" * 10_000
    mount.end(signal.SIGKILL)
    with mounted(mount.store, mount.path, "--prefetch", "0"):
        assert path.read_bytes() == b"5" * 10_000
        assert names_of(folder) == {"settings"}


@needs("sed")
def test_sed_sort_and_truncate_work_in_place(folder: Path) -> None:
    path = folder / "lines"
    path.write_text("".join(f"{number % 10} {number}\n" for number in range(2000)))
    run("sed", "-i.bak", "s/^7 /seven /", path)
    run("sort", "-o", path, path)
    lines = (folder / "lines.bak").read_text().replace("7 ", "seven ")
    assert sorted(path.read_text().splitlines()) != []
    assert path.read_text().count("seven ") == lines.count("seven ") == 200
    run("truncate", "-s", "5M", path)
    run("fallocate", "-d", path, allowed=(0, 1))  # no holes can be made in it; nothing is lost
    assert path.stat().st_size == 5 * MIB
    assert path.read_bytes()[-MIB:] == bytes(MIB)


# Pictures


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.convert("RGB").tobytes()


def unchanged_but(mount: Mount, changed: str) -> Iterator[tuple[Path, bytes]]:
    """Yield some other pictures with their bytes."""
    for path in sorted((mount.path / "pictures").iterdir())[:5]:
        if path.name != changed:
            yield path, path.read_bytes()


@needs("exiftool")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("pictures/003.png", "-overwrite_original"),
        ("jpeg/001.jpg", "-overwrite_original_in_place"),
    ],
)
def test_exiftool_writes_into_a_picture(mount: Mount, name: str, how: str) -> None:
    path = mount.path / name
    before, others = pixels(path), dict(unchanged_but(mount, path.name))
    names = names_of(mount.path)
    run("exiftool", "-q", how, "-Artist=A person", "-XMP:Title=ü", path)
    with remounted(mount):
        assert run("exiftool", "-s3", "-Artist", "-XMP:Title", path) == "A person\nü\n"
        assert pixels(path) == before
        assert names_of(mount.path) == names
        assert {other: other.read_bytes() for other in others} == others


@needs("exiftool")
def test_the_original_that_exiftool_keeps_is_still_a_latent(mount: Mount) -> None:
    path = mount.path / "pictures" / "003.png"
    data = path.read_bytes()
    run("exiftool", "-q", "-XMP:Title=new", path)
    original = path.with_name("003.png_original")
    with remounted(mount):
        assert original.read_bytes() == data
        assert os.getxattr(original, "user.latentfs.kind") == b"latent"
        assert pixels(path) == pixels(original)
        run("exiftool", "-q", "-overwrite_original", "-restore_original", path)
        assert path.read_bytes() == data


@needs("mogrify")
def test_mogrify_replaces_a_picture_with_other_pixels(mount: Mount) -> None:
    path = mount.path / "pictures" / "004.png"
    others = dict(unchanged_but(mount, path.name))
    with Image.open(path) as picture:
        width, height = picture.size
    run("mogrify", "-resize", "50%", path)
    run("mogrify", "-format", "jpg", path)
    with remounted(mount):
        for suffix in (".png", ".jpg"):
            with Image.open(path.with_suffix(suffix)) as picture:
                assert picture.size == (width // 2, height // 2)
        assert os.getxattr(path, "user.latentfs.kind") == b"blob"
        assert {other: other.read_bytes() for other in others} == others


def test_a_picture_that_is_mapped_and_written_keeps_its_other_bytes(mount: Mount) -> None:
    path = mount.path / "pictures" / "005.png"
    expected = bytearray(path.read_bytes())
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        for offset in (len(expected) // 2, len(expected) - 1):
            mapped[offset] = expected[offset] = expected[offset] ^ 0xFF
    assert path.read_bytes() == expected
    with remounted(mount):
        assert path.read_bytes() == expected
        assert path.stat().st_size == len(expected)
