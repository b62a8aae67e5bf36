"""Where settings come from, and which source counts."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import click
import pytest

from latentfs.cli.settings_options import setting_sources, settings_options
from latentfs.errors import InvalidArgumentError
from latentfs.settings.kernel_options import chosen_options
from latentfs.settings.sources import SettingSources, given_by_mount_options


def sources(
    *,
    file: Path | None = Path("/dev/null"),
    given: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
) -> SettingSources:
    given = given or {}
    return SettingSources(
        file=file,
        given=given,
        given_as={name: f"--{name}" for name in given},
        environment=environment or {},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "art.toml"
    path.write_text('cache = "1G"\nprefetch = 1\nread_only = true\n')
    return path


def test_the_defaults():
    resolved = sources().resolve()
    assert resolved.settings.cache_bytes == 512 << 20
    assert resolved.settings.develop
    assert resolved.settings.store is None
    assert set(resolved.origins.values()) == {"default"}


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(file):
    resolved = sources(
        file=file,
        environment={"LATENTFS_CACHE": "2G", "LATENTFS_PREFETCH": "2"},
        given={"cache": "3G"},
    ).resolve()
    assert resolved.settings.cache_bytes == 3 << 30
    assert resolved.settings.prefetch_files == 2
    assert resolved.settings.read_only
    assert resolved.origins["cache"] == "--cache"
    assert resolved.origins["prefetch"] == "LATENTFS_PREFETCH"
    assert resolved.origins["read_only"] == str(file)
    assert resolved.origins["device"] == "default"
    assert resolved.written["cache"] == "3G"


def test_one_file_is_read_the_first_that_is_there(tmp_path, file):
    home = tmp_path / "home" / "latentfs"
    home.mkdir(parents=True)
    (home / "config.toml").write_text('cache = "5M"\n')
    environment = {"XDG_CONFIG_HOME": str(tmp_path / "home")}
    chosen = {**environment, "LATENTFS_CONFIG": str(file)}

    def cache_bytes(file: Path | None, environment: dict[str, str]) -> int:
        return sources(file=file, environment=environment).resolve().settings.cache_bytes

    assert cache_bytes(None, environment) == 5 << 20
    assert cache_bytes(None, chosen) == 1 << 30
    assert cache_bytes(Path("/dev/null"), chosen) == 512 << 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('cahce = "1G"', "'cahce' is not a setting; did you mean 'cache'?"),
        ("render-timeout = 3", "'render-timeout' is not a setting; did you mean 'render_timeout'?"),
        ('zzz = "1G"', "'zzz' is not a setting"),
        ("[mount]\ncache = 1", "'mount' is not a setting"),
        ('cache = "much"', "'much' is not a size"),
        ("cache = true", "True is not a size"),
        ("prefetch = 65", "65 is not a whole number from 0 to 64"),
        ('store = "art.lfs"', "'art.lfs' is relative"),
        ('mount_options = ["allow_othr"]', "did you mean 'allow_other'?"),
        ("cache = ", "is not TOML"),
        ("\udcff", "is not TOML"),
        pytest.param("cache = " + "9" * 5000, "is not TOML", id="a number of 5000 digits"),
        pytest.param("cache = " + "[" * 5000, "is not TOML", id="lists in lists"),
    ],
)
def test_a_file_that_can_not_be_used_is_refused_with_its_name(tmp_path, text, said):
    path = tmp_path / "art.toml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(InvalidArgumentError) as caught:
        sources(file=path).resolve()
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_was_asked_for_must_be_there(tmp_path):
    with pytest.raises(InvalidArgumentError, match="can't be read: No such file"):
        sources(file=tmp_path / "none.toml").resolve()


def test_a_link_is_followed_whenever_it_is_read(tmp_path, file, monkeypatch):
    newer = tmp_path / "newer.toml"
    newer.write_text('cache = "5M"\n')
    link = tmp_path / "current.toml"
    link.symlink_to(file)
    seen = []

    @click.command
    @settings_options
    def command(**options):
        seen.append(setting_sources(store=None, mountpoint=None, options=options))

    monkeypatch.chdir(tmp_path)
    command.main(["--config", "current.toml"], standalone_mode=False)
    monkeypatch.chdir("/")
    (found,) = seen
    assert found.resolve().settings.cache_bytes == 1 << 30
    link.unlink()
    link.symlink_to(newer)
    assert found.resolve().settings.cache_bytes == 5 << 20


def test_a_relative_path_in_a_variable_is_refused_or_ignored(tmp_path, file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidArgumentError, match=r"LATENTFS_CONFIG=art.toml is relative"):
        sources(file=None, environment={"LATENTFS_CONFIG": "art.toml"}).file_in_use()
    for folder in ("elsewhere", "home/.config"):
        (tmp_path / folder / "latentfs").mkdir(parents=True)
        (tmp_path / folder / "latentfs" / "config.toml").write_text('cache = "5M"\n')
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    at_home = tmp_path / "home" / ".config" / "latentfs" / "config.toml"
    assert sources(file=None, environment={"XDG_CONFIG_HOME": "elsewhere"}).file_in_use() == at_home


def test_a_file_that_can_not_be_looked_for_is_an_error(tmp_path, monkeypatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(InvalidArgumentError, match=r"can't see whether .*: Permission denied"):
        sources(file=None, environment={"XDG_CONFIG_HOME": str(tmp_path)}).resolve()


def test_a_misspelt_variable_is_refused_and_others_are_left_alone():
    with pytest.raises(InvalidArgumentError, match="did you mean 'LATENTFS_RENDER_TIMEOUT'"):
        sources(environment={"LATENTFS_RENDERTIMEOUT": "3s"}).resolve()
    sources(environment={"LATENTFS_TEST_ALL": "1", "CACHE": "x"}).resolve()


def test_a_wrong_value_is_refused_with_where_it_came_from():
    with pytest.raises(InvalidArgumentError, match=r"^cache of LATENTFS_CACHE: 'x' is not a size"):
        sources(environment={"LATENTFS_CACHE": "x"}).resolve()


def test_the_nearest_name_is_named_as_it_is_written_there(tmp_path):
    for variable, meant in (
        ("LATENTFS_CAHCE", "LATENTFS_CACHE"),
        ("LATENTFS_CONFGI", "LATENTFS_CONFIG"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"{variable} .*; did you mean '{meant}'"):
            sources(environment={variable: "1G"}).resolve()
    file = tmp_path / "art.toml"
    for written, said in (
        ("Cache", "did you mean 'cache'"),
        ("render-timeout", "did you mean 'render_timeout'"),
        ("zzz", "there are store, mountpoint, mount_options, "),
    ):
        file.write_text(f'{written} = "1"\n')
        with pytest.raises(InvalidArgumentError, match=f"'{written}' is not a setting; {said}"):
            sources(file=file).resolve()


def options_of(file: Path, options: str, *, environment: dict[str, str] | None = None):
    given = given_by_mount_options(options)
    return SettingSources(
        file=file, given=given, given_as=dict.fromkeys(given, "-o"), environment=environment or {}
    ).resolve()


def test_options_for_the_kernel_add_to_those_of_file_and_environment(tmp_path):
    file = tmp_path / "art.toml"
    file.write_text('mount_options = ["noallow_other", "noexec"]\n')
    resolved = options_of(file, "nosuid,exec")
    assert resolved.settings.mount_options == ("noallow_other", "noexec", "nosuid", "exec")
    assert resolved.origins["mount_options"] == f"{file}, -o"
    assert resolved.written["mount_options"] == ["noallow_other", "noexec", "nosuid", "exec"]
    assert chosen_options(resolved.settings.mount_options, may_allow_other=True) == {
        "default_permissions",
        "nodev",
        "nosuid",
    }
    assert options_of(file, "cache=1G").origins["mount_options"] == str(file)
    variable = {"LATENTFS_MOUNT_OPTIONS": "noatime"}
    resolved = options_of(file, "nosuid", environment=variable)
    assert resolved.settings.mount_options == ("noallow_other", "noexec", "noatime", "nosuid")
    assert resolved.origins["mount_options"] == f"{file}, LATENTFS_MOUNT_OPTIONS, -o"
    assert options_of(Path("/dev/null"), "nosuid").origins["mount_options"] == "-o"


def test_options_that_add_to_wrong_ones_do_not_hide_where_these_are(tmp_path):
    file = tmp_path / "art.toml"
    for written in ('["alow_other"]', "[1]"):
        file.write_text(f"mount_options = {written}\n")
        with pytest.raises(InvalidArgumentError, match=f"^mount_options of {file}: "):
            options_of(file, "nosuid")


def test_mount_options_give_settings_and_what_the_kernel_is_told():
    given = given_by_mount_options(
        "rw,noatime,cache=2G,render-timeout=5s,nofail,x-a.b=c,cache=3G,ro"
    )
    assert given == {
        "read_only": True,
        "cache": "3G",
        "render_timeout": "5s",
        "mount_options": ["noatime"],
    }


def test_options_for_the_kernel_add_to_those_of_mount_options_beside_them():
    for text, expected in (
        ("mount_options=noatime,noexec", ("noatime", "noexec")),
        ("noexec,mount-options=noatime", ("noexec", "noatime")),
        ("mount_options=,mount_options=noatime,ro", ("noatime",)),
    ):
        assert options_of(Path("/dev/null"), text).settings.mount_options == expected
    with pytest.raises(
        InvalidArgumentError, match=r"^mount_options of -o: .*'noatim' is not known"
    ):
        options_of(Path("/dev/null"), "mount_options=noatim,noexec")


@pytest.mark.parametrize(
    ("option", "needed"),
    [("read_only", "read_only=yes|no"), ("render-timeout", "render_timeout=TIME")],
)
def test_a_setting_among_mount_options_needs_a_value(option, needed):
    with pytest.raises(
        InvalidArgumentError, match=f"{option!r} needs a value: {re.escape(needed)}"
    ):
        given_by_mount_options(f"ro,{option}")


@pytest.mark.parametrize(
    ("option", "hint"),
    [("cahce=2G", "'cache'"), ("allow-other", "'allow_other'"), ("RO", "'ro'"), ("zzzz", "")],
)
def test_an_unknown_mount_option_is_refused(option, hint):
    with pytest.raises(InvalidArgumentError, match=f"{option!r} is not known.*{hint}"):
        given_by_mount_options(f"ro,{option}")
