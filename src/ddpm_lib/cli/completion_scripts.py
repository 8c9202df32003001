"""Completion as programs of bash, zsh and fish, which ask no Python while the user types."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from ddpm_lib.cli.completion_tables import Entry, Flag

MARK = "completion of ddpm"
"""A word of the first line, by which a file of ours is known."""

_RUNS = """
    local d
    for d in runs/*/ */; do
        if [ -e "${d}status.json" ] || [ -d "${d}checkpoints" ]; then printf '%s\\n' "${d%/}"; fi
    done"""


def _words(texts: Iterable[str]) -> str:
    return shlex.quote(" ".join(texts))


def _cases(entries: Sequence[Entry], line: str = "        {pattern}) echo {words} ;;\n") -> str:
    """Return the arms of `case "$command $option"` that print the values of an option."""
    text = ""
    for entry in entries:
        arms: dict[str, list[str]] = {}
        for flag in entry.flags:
            if flag.takes != "nothing":
                words = {"run": "@runs"}.get(flag.takes) or " ".join(flag.choices) or "@files"
                arms.setdefault(words, []).extend(f'"{entry.name} {n}"' for n in flag.names)
        for words, patterns in arms.items():
            text += line.format(pattern=" | ".join(patterns), words=shlex.quote(words))
    return text


def _tables(entries: Sequence[Entry]) -> str:
    """Return the functions that bash and zsh share: options, values and first words of commands."""
    options = "".join(
        f"        {entry.name}) echo {_words(n for flag in entry.flags for n in flag.names)} ;;\n"
        for entry in entries
    )
    firsts = "".join(
        f"        {entry.name}) echo {shlex.quote('@runs' if entry.runs else _first(entry))} ;;\n"
        for entry in entries
    )
    return f"""_ddpm_runs() {{{_RUNS}
}}
_ddpm_options() {{
    case "$1" in
{options}    esac
}}
_ddpm_first() {{
    case "$1" in
{firsts}    esac
}}
_ddpm_values() {{
    case "$1 $2" in
{_cases(entries)}    esac
}}
"""


def _first(entry: Entry) -> str:
    return " ".join(entry.words) or "@files"


def bash(entries: Sequence[Entry]) -> str:
    """Return the program for bash."""
    names = _words([*(entry.name for entry in entries), "help", "--help", "--version"])
    return f"""# {MARK} for bash; made by `ddpm completion bash`
{_tables(entries)}_ddpm() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}}
    local command=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if [ "$cur" = "=" ]; then cur=""
    elif [ "$prev" = "=" ]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}
    fi
    if [ "$COMP_CWORD" -eq 1 ] || [ "$command" = help ]; then
        COMPREPLY=($(compgen -W {names} -- "$cur"))
        return
    fi
    local words; words=$(_ddpm_values "$command" "$prev")
    if [ -z "$words" ] && [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$(_ddpm_options "$command")" -- "$cur"))
        return
    fi
    [ -n "$words" ] || words=$(_ddpm_first "$command")
    case "$words" in
        @runs)
            local run
            compopt -o filenames 2>/dev/null
            while IFS= read -r run; do
                [[ $run == "$cur"* ]] && COMPREPLY+=("$run")
            done < <(_ddpm_runs)
            ;;
        @files) ;;
        *)
            local before=""
            [[ $cur == *,* ]] && before="${{cur%,*}},"
            COMPREPLY=($(compgen -P "$before" -W "$words" -- "${{cur##*,}}"))
            return
            ;;
    esac
    if [ "${{#COMPREPLY[@]}}" -eq 0 ]; then compopt -o bashdefault -o default 2>/dev/null; fi
}}
complete -F _ddpm ddpm
"""


def zsh(entries: Sequence[Entry]) -> str:
    """Return the program for zsh."""
    commands = " ".join(shlex.quote(f"{entry.name}:{entry.about}") for entry in entries)
    return f"""#compdef ddpm
# {MARK} for zsh; made by `ddpm completion zsh`
setopt localoptions nonomatch
{_tables(entries)}_ddpm() {{
    setopt localoptions nullglob
    local command=${{words[2]}} prev=${{words[CURRENT-1]}} found
    local -a listed
    if (( CURRENT == 2 )) || [[ $command == help ]]; then
        listed=({commands} 'help:show the help of a command')
        _describe command listed
        return
    fi
    if [[ $PREFIX == --*=* ]]; then
        prev=${{PREFIX%%=*}}
        compset -P '*='
    fi
    found=$(_ddpm_values $command $prev)
    if [[ -z $found && $PREFIX == -* ]]; then
        listed=(${{=$(_ddpm_options $command)}})
        compadd -a listed
        return
    fi
    [[ -n $found ]] || found=$(_ddpm_first $command)
    case $found in
        @runs)
            listed=(${{(f)"$(_ddpm_runs)"}})
            if (( $#listed )); then compadd -a listed; else _files; fi ;;
        @files) _files ;;
        *)
            compset -P '*,'
            listed=(${{=found}})
            compadd -a listed ;;
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _ddpm "$@"; else compdef _ddpm ddpm; fi
"""


def fish(entries: Sequence[Entry]) -> str:
    """Return the program for fish."""
    lines = [
        f"# {MARK} for fish; made by `ddpm completion fish`",
        "function __ddpm_runs",
        "    for d in runs/*/ */",
        '        if test -e "$d"status.json; or test -d "$d"checkpoints',
        "            string trim --right --chars=/ -- $d",
        "        end",
        "    end",
        "end",
        "complete -c ddpm -n __fish_use_subcommand -f",
    ]
    for entry in entries:
        about = shlex.quote(entry.about)
        lines.append(f"complete -c ddpm -n __fish_use_subcommand -a {entry.name} -d {about}")
    for entry in entries:
        here = f"complete -c ddpm -n '__fish_seen_subcommand_from {entry.name}'"
        if entry.runs:
            lines.append(f"{here} -a '(__ddpm_runs)'")
        elif entry.words:
            lines.append(f"{here} -f -a {_words(entry.words)}")
        lines += [f"{here} {_fish_flag(flag)}" for flag in entry.flags]
    return "\n".join(lines) + "\n"


def _fish_flag(flag: Flag) -> str:
    parts = [
        f"-l {name.removeprefix('--')}" if name.startswith("--") else f"-s {name[1:]}"
        for name in flag.names
    ]
    parts += [f"-d {shlex.quote(flag.about)}"] if flag.about else []
    if flag.takes == "run":
        parts.append("-x -a '(__ddpm_runs)'")
    elif flag.choices:
        parts.append(f"-x -a {_words(flag.choices)}")
    elif flag.takes != "nothing":
        parts.append("-r")
    return " ".join(parts)
