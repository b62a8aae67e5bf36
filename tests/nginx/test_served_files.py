"""What nginx answers for files of a mount, with the configuration of examples/nginx."""

from __future__ import annotations

import email
import json
import os
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from mounts import wait_until
from nginx.conftest import ALMOST_A_PICTURE, ODD_FOLDER, ODD_NAMES, Served, serving
from nginx.http_client import Answer, ask

CAT = "/art/pictures/010.png"
RELOADS = 20


@pytest.fixture(scope="module")
def served(
    own_store: Path, right: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A mount of which nothing was read yet, nor is without being asked for."""
    with serving(own_store, tmp_path_factory.mktemp("files"), right) as served:
        yield served


def renders(served: Served) -> int:
    return int(served.mount.status()["renders_total"])


async def ask_all(served: Served, targets: list[str]) -> list[Answer]:
    """Ask for all of them at once."""
    answers: list[Answer] = []

    async def one(target: str) -> None:
        answers.append(await ask(served.port, target))

    async with trio.open_nursery() as nursery:
        for target in targets:
            nursery.start_soon(one, target)
    return answers


async def test_a_head_request_tells_all_of_a_picture_and_renders_nothing(served: Served) -> None:
    before = renders(served)
    answer = await ask(served.port, "/art/pictures/090.png", method="HEAD")
    size = (served.mount.path / "pictures/090.png").stat().st_size
    assert (answer.status, answer.headers["content-length"]) == (200, str(size))
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["accept-ranges"] == "bytes"
    assert renders(served) == before
    assert (await ask(served.port, "/art/pictures/090.png")).status == 200
    assert renders(served) == before + 1


async def test_a_picture_comes_whole_with_its_type_and_may_be_kept(served: Served) -> None:
    for target, kind in (
        ("/art/pictures/092.png", "image/png"),
        ("/art/jpeg/001.jpg", "image/jpeg"),
    ):
        before = renders(served)
        for _ in ("cold", "hot"):
            answer = await ask(served.port, target)
            assert (answer.status, answer.is_whole) == (200, True)
            assert answer.sha256 == served.right[target]
            assert answer.headers["content-type"] == kind
            assert answer.headers["cache-control"] == "public, max-age=86400"
            assert "content-encoding" not in answer.headers
            assert renders(served) == before + 1


async def test_a_browser_learns_that_its_copy_is_good_without_a_render(served: Served) -> None:
    before = renders(served)
    target = "/art/pictures/091.png"
    head = (await ask(served.port, target, method="HEAD")).headers
    mtime_s = int((served.mount.path / "pictures/091.png").stat().st_mtime)
    assert head["etag"] == f'"{mtime_s:x}-{int(head["content-length"]):x}"'
    for headers in (
        {"If-None-Match": head["etag"]},
        {"If-Modified-Since": head["last-modified"]},
    ):
        answer = await ask(served.port, target, headers=headers)
        assert (answer.status, answer.body) == (304, b"")
    assert renders(served) == before
    assert (await ask(served.port, target)).sha256 == served.right[target]
    assert renders(served) == before + 1


async def test_a_browser_with_another_copy_gets_the_picture(served: Served) -> None:
    answer = await ask(served.port, CAT, headers={"If-None-Match": '"another"'})
    assert (answer.status, answer.sha256) == (200, served.right[CAT])


async def test_a_name_that_was_not_there_is_not_taken_for_checked(served: Served) -> None:
    for _ in range(3):
        answer = await ask(served.port, "/art/pictures/comes-later.png")
        assert answer.status == 404
    assert not has_kept_check(served, "/art/pictures/comes-later.png")
    assert (await ask(served.port, CAT)).status == 200
    assert has_kept_check(served, CAT)


def has_kept_check(served: Served, path: str) -> bool:
    """Whether nginx remembers that it could read the picture at *path*, decoded."""
    files = [path for path in (served.nginx.folder / "checks").rglob("*") if path.is_file()]
    return any(f" {path}\n".encode() in file.read_bytes() for file in files)


async def test_ranges_are_cut_out_of_the_right_bytes(served: Served) -> None:
    data = (await ask(served.port, CAT)).body
    for wanted, first, end in (
        ("0-0", 0, 1),
        ("100-4999", 100, 5000),
        ("5000-", 5000, len(data)),
        ("-700", len(data) - 700, len(data)),
    ):
        answer = await ask(served.port, CAT, headers={"Range": f"bytes={wanted}"})
        assert (answer.status, answer.body) == (206, data[first:end])
        assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(data)}"


async def test_several_ranges_come_as_parts(served: Served) -> None:
    data = (await ask(served.port, CAT)).body
    answer = await ask(served.port, CAT, headers={"Range": "bytes=0-9,1000-1999,-5"})
    assert (answer.status, answer.is_whole) == (206, True)
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + answer.body).get_payload()
    assert isinstance(parts, list)
    payloads = answer.body.split(b"\r\n\r\n")[1:]  # of parts that hold any bytes
    assert len(parts) == 3
    for payload, piece in zip(payloads, (data[:10], data[1000:2000], data[-5:]), strict=False):
        assert payload.startswith(piece)


async def test_a_range_behind_the_end_is_refused_with_the_size(served: Served) -> None:
    size = (served.mount.path / "pictures/010.png").stat().st_size
    answer = await ask(served.port, CAT, headers={"Range": f"bytes={size}-"})
    assert (answer.status, answer.headers["content-range"]) == (416, f"bytes */{size}")


async def test_a_range_joins_only_the_same_picture(served: Served) -> None:
    etag = (await ask(served.port, CAT, method="HEAD")).headers["etag"]
    for if_range, status in ((etag, 206), ('"another"', 200)):
        headers = {"Range": "bytes=10-", "If-Range": if_range}
        assert (await ask(served.port, CAT, headers=headers)).status == status


async def test_what_is_not_there_is_404_and_no_error_may_be_kept(served: Served) -> None:
    for target in ("/art/pictures/nothing.png", "/art/nothing", "/list/nothing/", "/nothing"):
        answer = await ask(served.port, target)
        assert answer.status == 404, target
        assert "cache-control" not in answer.headers
    for target in ("/latentfs-check", "/art/../../etc/passwd", "/list/pictures/010.png"):
        assert (await ask(served.port, target)).status in (400, 404), target


async def test_a_folder_is_listed_without_a_render(served: Served) -> None:
    before = renders(served)
    answer = await ask(served.port, "/list/pictures/")
    entries = json.loads(answer_body(answer))
    assert {entry["name"] for entry in entries} == {f"{number:03}.png" for number in range(100)}
    size = (served.mount.path / "pictures/050.png").stat().st_size
    assert {entry["size"] for entry in entries if entry["name"] == "050.png"} == {size}
    assert renders(served) == before


async def test_what_is_put_into_the_mount_can_neither_hide_a_folder_nor_run_scripts(
    served: Served,
) -> None:
    folder = served.mount.path / "pages"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "index.html").write_text("<script>alert(1)</script>")
    entries = json.loads(answer_body(await ask(served.port, "/list/pages/")))
    assert {entry["name"] for entry in entries} == {"folder.png", "index.html"}
    page = await ask(served.port, "/art/pages/index.html")
    assert page.status == 200
    assert "sandbox" in page.headers["content-security-policy"]
    assert "sandbox" in (await ask(served.port, CAT)).headers["content-security-policy"]
    assert (await ask(served.port, "/art/pages/folder.png")).status == 301


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have the kernel refuse links")
async def test_links_in_the_mount_lead_nowhere(served: Served, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("secret.png", "secret.txt", "folder/secret.png"):
        (tmp_path / name).write_bytes(b"secret")
    links = served.mount.path / "links"
    links.mkdir()
    for name in ("secret.png", "secret.txt", "folder"):
        (links / name).symlink_to(tmp_path / name)
    (links / "cat.png").symlink_to("../pictures/010.png")
    for target, status in (
        ("/art/links/secret.png", 503),
        ("/art/links/secret.txt", 503),
        ("/art/links/folder/secret.png", 503),
        ("/art/links/cat.png", 503),
        ("/list/links/folder/", 503),
    ):
        for method in ("GET", "HEAD"):
            answer = await ask(served.port, target, method=method)
            assert answer.status == status, target
            assert b"secret" not in answer.body


def answer_body(answer: Answer) -> bytes:
    """Of an answer in chunks, as listings are."""
    assert answer.headers["transfer-encoding"] == "chunked"
    data, rest = b"", answer.body
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return data
        data += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


async def test_odd_names_are_checked_and_served(served: Served) -> None:
    for number, name in enumerate(ODD_NAMES):
        target = "/art/" + urllib.parse.quote(f"{ODD_FOLDER}/{name}")
        answer = await ask(served.port, target)
        assert answer.status == 200, name
        assert answer.sha256 == served.right[f"/art/pictures/{number:03}.png"]
        assert answer.headers["content-type"] == "image/png"
        assert "cache-control" in answer.headers
        assert has_kept_check(served, f"/art/{ODD_FOLDER}/{name}"), name


async def test_a_name_that_is_a_pictures_but_for_a_line_break_is_not_taken_for_it(
    served: Served,
) -> None:
    target = "/art/" + urllib.parse.quote(f"{ODD_FOLDER}/{ALMOST_A_PICTURE}")
    answer = await ask(served.port, target)
    assert (answer.status, answer.sha256) == (200, served.right["/art/pictures/099.png"])


async def test_an_empty_file_that_is_named_as_a_picture_is_served(served: Served) -> None:
    (served.mount.path / "empty.png").touch()
    (served.mount.path / "note.txt").write_bytes(b"no picture")
    answer = await ask(served.port, "/art/empty.png")
    assert (answer.status, answer.body) == (200, b"")
    assert (await ask(served.port, "/art/note.txt")).body == b"no picture"


async def test_a_thousand_clients_at_once_get_cold_and_hot_pictures(served: Served) -> None:
    pictures = [f"/art/pictures/{number:03}.png" for number in range(15, 75)]
    for target in pictures[:10]:
        await ask(served.port, target)
    before = renders(served)
    targets = [pictures[number % len(pictures)] for number in range(1000)]
    answers = await ask_all(served, targets)
    assert Counter(answer.status for answer in answers) == {200: 1000}
    assert all(answer.is_whole for answer in answers)
    wanted = Counter(served.right[target] for target in targets)
    assert Counter(answer.sha256 for answer in answers) == wanted
    assert renders(served) - before == 50


async def test_clients_that_hang_up_during_a_render_are_nobodys_trouble(served: Served) -> None:
    targets = [f"/art/pictures/{number:03}.png" for number in range(75, 90)]
    before = renders(served)
    for target in targets:
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        await stream.aclose()
    for answer, target in [(await ask(served.port, target), target) for target in targets]:
        assert (answer.status, answer.sha256) == (200, served.right[target])
    assert renders(served) - before == len(targets)

    def is_idle() -> bool:
        status = served.mount.status()
        return not (status["renders_in_flight"] or status["renders_queued"])

    await trio.to_thread.run_sync(wait_until, is_idle, "all renders have ended")


async def test_reloads_under_load_lose_no_request(served: Served) -> None:
    statuses: Counter[int] = Counter()
    targets = sorted(served.right)[:80]
    workers_before = workers(served)

    async def client(number: int, scope: trio.CancelScope) -> None:
        at = number
        while not scope.cancel_called:
            target = targets[at % len(targets)]
            answer = await ask(served.port, target)
            statuses[answer.status] += 1
            assert answer.status != 200 or answer.sha256 == served.right[target]
            at += 7

    async with trio.open_nursery() as nursery:
        stop = trio.CancelScope()
        for number in range(30):
            nursery.start_soon(client, number, stop)
        for _ in range(RELOADS):
            await trio.sleep(0.3)
            served.nginx.reload()
        await trio.sleep(0.5)
        stop.cancel()
    assert set(statuses) == {200}, statuses
    assert statuses[200] > 100
    assert not workers(served) & workers_before


def workers(served: Served) -> set[int]:
    master = int((served.nginx.folder / "nginx.pid").read_text())
    children = Path(f"/proc/{master}/task/{master}/children").read_text()
    return {int(pid) for pid in children.split()}


async def test_other_machines_are_limited_and_told_so(served: Served) -> None:
    answers: list[Answer] = []

    async def one() -> None:
        answers.append(await ask(served.port, CAT, method="HEAD", source="127.0.0.2"))

    async with trio.open_nursery() as nursery:
        for _ in range(900):
            nursery.start_soon(one)
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 64
    kept = {answer.headers.get("cache-control") for answer in answers if answer.status == 429}
    assert kept == {None}


async def test_other_machines_list_folders_now_and_then(served: Served) -> None:
    answers = [await ask(served.port, "/list/jpeg/", source="127.0.0.3") for _ in range(30)]
    statuses = Counter(answer.status for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 20
