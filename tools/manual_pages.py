"""Manual pages in roff, of click commands: from the texts that ``--help`` prints, and nothing else.

What is in a page: the usage lines, the paragraphs of the help, each option, the examples of the
epilog (``Example: COMMAND`` or ``Examples: COMMAND | COMMAND``), the environment variables that
stand for options, the exit status, and the pages beside it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence

import click

from latentfs import __version__
from latentfs.settings.mount_settings import SETTINGS

__all__ = ["context_of", "manual_page", "page_name", "subcommands"]

_SECTION = "1"
_WIDE = 10_000  # so that click breaks no line; roff does

_EXIT_STATUS = (
    ("0", "All done."),
    ("1", "It failed, something was refused, or a problem was found."),
    (
        "2",
        "It was used wrongly: an unknown command or option, a missing argument, a value out of "
        "range.",
    ),
    ("130", "It was interrupted with Ctrl-C."),
)
_FILES = (
    ("STORE/latentfs.toml", "The mark of a store, the folder that most commands are given."),
    ("STORE/lmdb/data.mdb", "Its database."),
    ("STORE/vae/", "Copies of the VAEs that its pictures are decoded with."),
    ("STORE/control.sock", "How commands talk to the daemon that has the store mounted."),
    ("~/.config/latentfs/config.toml", "Settings of mounts, unless --config names a file."),
    ("/etc/latentfs/config.toml", "The same, for all users without one of their own."),
    ("/etc/fuse.conf", "With a line user_allow_other, mounts of a user can be read by others."),
    ("~/.cache/latentfs/compiled", "Kernels of VAEs that were added with --compile."),
)
_FILE_SYSTEM_PAGES = ("fusermount3(1)", "mount(8)", "umount(8)")

# What is set in bold or italics in running text: options, paths, and names of arguments.
_MARKED = re.compile(
    r"(?P<option>(?<![\w-])--?[a-z][\w-]*)"
    r"|(?P<path>(?<![\w./])(?:~?/[\w.~-]+)+/?)"
    r"|(?P<name>\b[A-Z]{3,}[A-Z_]*(?:/[\w.]+/?)*)"
)
_ESCAPES = str.maketrans({"\\": r"\(rs", "~": r"\(ti", "^": r"\(ha", "`": r"\(ga", "'": r"\(aq"})
_METAVAR_WORD = re.compile(r"(?P<name>[A-Z][A-Z_]*(?![a-z]))|(?P<literal>[a-z0-9_.:]+)|(?P<rest>.)")


def context_of(root: click.Command, words: Sequence[str]) -> click.Context:
    """Return the context of the command that ``latentfs WORDS...`` runs, with no argument given.

    Raises:
        click.ClickException: there is no such command.
    """
    context = _made(root, "latentfs", [], None)
    rest = list(words)
    while rest:
        command = context.command
        found = command.get_command(context, rest[0]) if isinstance(command, click.Group) else None
        if found is None:
            raise click.UsageError(f"there is no command {' '.join(words)!r}", context)
        # A command that is no group may still take a first word for another command.
        given = [] if isinstance(found, click.Group) else rest[1:]
        context = _made(found, rest[0], given, context)
        rest = rest[1:] if isinstance(found, click.Group) else []
    return context


def _made(
    command: click.Command, name: str, given: list[str], parent: click.Context | None
) -> click.Context:
    return command.make_context(
        name, given.copy(), parent=parent, resilient_parsing=True, terminal_width=_WIDE
    )


def subcommands(root: click.Command) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that groups list, parents first."""

    def below(context: click.Context, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(context.command, click.Group):
            for name in context.command.list_commands(context):
                found = context.command.get_command(context, name)
                if found is not None and not found.hidden:
                    yield (*words, name)
                    yield from below(_made(found, name, [], context), (*words, name))

    yield from below(_made(root, "latentfs", [], None), ())


def page_name(words: Sequence[str]) -> str:
    return "-".join(("latentfs", *words))


def manual_page(
    root: click.Command,
    words: Sequence[str],
    pages: Sequence[Sequence[str]],
    *,
    exit_status: str = "",
) -> str:
    """Return the page of one command.

    Args:
        root: the command ``latentfs``.
        words: of the command, behind ``latentfs``.
        pages: words of all commands that have a page, this one and the root too.
        exit_status: in a sentence what the command's own are; what all have in common if empty.
    """
    context = context_of(root, words)
    command = context.command
    title = page_name(words).upper().replace("-", r"\-")
    lines = [
        '.\\" Written by tools/refresh_command_docs.py from what --help prints; not by hand.',
        f'.TH {title} {_SECTION} "" "latentfs {__version__}" "latentfs manual"',
        ".nh",
        ".ad l",
        *_section("NAME", [rf"{_literal(page_name(words))} \- {_plain(_summary(command))}"]),
        *_section("SYNOPSIS", _synopsis(context)),
        *_section("DESCRIPTION", _paragraphs(command.help or "", context)),
        *_section("COMMANDS", _children(root, words, pages)),
        *_section("OPTIONS", _options(context)),
        *_section("ENVIRONMENT", _environment(context)),
        *_section("FILES", [] if words else _described(_FILES, context)),
        *_section("EXIT STATUS", _statuses(exit_status, context)),
        *_section("EXAMPLES", _examples(context)),
        *_section("SEE ALSO", _see_also(words, pages)),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, body: Sequence[str]) -> list[str]:
    return [f".SH {title}", *body] if body else []


def _summary(command: click.Command) -> str:
    """The first sentence, as it stands behind a dash."""
    sentence = command.get_short_help_str(limit=_WIDE).rstrip(".")
    return sentence[:1].lower() + sentence[1:]


def _synopsis(context: click.Context) -> list[str]:
    usages = context.command.get_usage(context).removeprefix("Usage:").splitlines()
    lines = []
    for usage in map(str.strip, usages):
        words = re.match(r"[a-z][\w-]*(?: [a-z][\w-]*)*", usage)
        assert words is not None, usage
        lines += [_bold(words[0]) + _metavar(usage[words.end() :]), ".br"]
    return lines[:-1]


def _paragraphs(text: str, context: click.Context) -> list[str]:
    lines: list[str] = []
    for number, block in enumerate(inspect.cleandoc(text.split("\f")[0]).split("\n\n")):
        as_it_is = block.startswith("\b")  # click's mark of a block that is not wrapped anew
        block = block.removeprefix("\b\n")
        lines += [".PP"] * (number > 0) + [".nf"] * as_it_is
        lines += [_prose(line, context) for line in block.splitlines() if line.strip()]
        lines += [".fi"] * as_it_is
    return lines


def _options(context: click.Context) -> list[str]:
    lines = []
    for param in context.command.get_params(context):
        record = param.get_help_record(context)
        if not isinstance(param, click.Option) or record is None:
            continue
        names = ", ".join(_bold(name) for name in (*param.opts, *param.secondary_opts))
        metavar = "" if param.is_flag or param.count else f" {param.make_metavar(context)}"
        lines += [".TP", names + _metavar(metavar), _prose(record[1], context)]
    return lines


def _environment(context: click.Context) -> list[str]:
    """Variables that click reads, and those of settings where a file of them is taken."""
    params = {param.name: param for param in context.command.get_params(context)}
    found = [
        (variable, param)
        for param in params.values()
        for variable in ([param.envvar] if isinstance(param.envvar, str) else param.envvar or ())
    ]
    config = next((param for param in params.values() if "--config" in param.opts), None)
    if config is not None:
        found.append(("LATENTFS_CONFIG", config))
        settings = [setting for setting in SETTINGS if setting.name in params]
        found += [
            (f"LATENTFS_{setting.name.upper()}", params[setting.name]) for setting in settings
        ]
    rows = [(variable, f"Stands for {_usual_name(param, context)}.") for variable, param in found]
    return _described(rows, context)


def _usual_name(param: click.Parameter, context: click.Context) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.make_metavar(context).strip("[]")


def _described(rows: Sequence[tuple[str, str]], context: click.Context) -> list[str]:
    return [line for term, text in rows for line in (".TP", _bold(term), _prose(text, context))]


def _statuses(text: str, context: click.Context) -> list[str]:
    if not text:
        return _described(_EXIT_STATUS, context)
    return [_prose(text, context), ".PP", f"See also {_reference('latentfs')}."]


def _examples(context: click.Context) -> list[str]:
    kind, _, commands = (context.command.epilog or "").partition(": ")
    if kind not in ("Example", "Examples"):
        return _paragraphs(context.command.epilog or "", context)
    shown = [commands] if kind == "Example" else commands.split(" | ")
    return [
        ".nf",
        ".RS 4",
        *(_literal(" ".join(example.split())) for example in shown),
        ".RE",
        ".fi",
    ]


def _children(
    root: click.Command, words: Sequence[str], pages: Sequence[Sequence[str]]
) -> list[str]:
    lines = []
    for page in pages:
        if len(page) == len(words) + 1 and list(page[:-1]) == list(words):
            context = context_of(root, page)
            text = context.command.get_short_help_str(limit=_WIDE)
            lines += [".TP", _reference(page_name(page)), _prose(text, context)]
    return lines


def _see_also(words: Sequence[str], pages: Sequence[Sequence[str]]) -> list[str]:
    near = [page for page in pages if list(page[:1]) == list(words[:1]) or len(page) <= 1]
    names = [page_name(page) for page in near if list(page) != list(words)]
    if not words:
        names = [page_name(page) for page in pages if page]
    others = [f"{_bold(name[:-3])}{name[-3:]}" for name in _FILE_SYSTEM_PAGES]
    shown = [*map(_reference, names), *others]
    return [f"{reference}," for reference in shown[:-1]] + shown[-1:]


def _reference(name: str) -> str:
    return f"{_bold(name)}({_SECTION})"


def _bold(text: str) -> str:
    return rf"\fB{_literal(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_literal(text)}\fR"


def _literal(text: str) -> str:
    """Text that is typed as it stands: its hyphens are minus signs."""
    return _plain(text).replace("-", r"\-")


def _metavar(text: str) -> str:
    def shown(match: re.Match[str]) -> str:
        if match["name"]:
            return _italic(match["name"])
        return _bold(match["literal"]) if match["literal"] else _literal(match["rest"])

    return _METAVAR_WORD.sub(shown, text)


def _prose(text: str, context: click.Context) -> str:
    """One line of running text, with options in bold, paths and arguments in italics."""
    arguments = {
        str(param.metavar or param.name).upper().rstrip(".")
        for param in context.command.get_params(context)
        if isinstance(param, click.Argument)
    }
    shown, start = [], 0
    text = " ".join(text.split())
    for match in _MARKED.finditer(text):
        if match["name"] and match["name"].split("/")[0] not in arguments:
            continue
        shown.append(_plain(text[start : match.start()]))
        start = match.end()
        if match["path"] and match[0].endswith("."):
            start -= 1
        marked = text[match.start() : start]
        shown.append(_bold(marked) if match["option"] else _italic(marked))
    line = "".join((*shown, _plain(text[start:])))
    return rf"\&{line}" if line.startswith(".") else line


def _plain(text: str) -> str:
    """Text with nothing in it that roff takes for a request, or shows as another character."""
    return text.translate(_ESCAPES)
