"""Checks of the training Python, its packages, and the shell that starts it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from core.doctor import setup
from core.doctor.check import Check, Values
from core.doctor.finding import Verdict
from core.doctor.fix import Command, Fix, RemoveLines, advice
from core.doctor.fold import differences
from core.doctor.needs import Needs
from core.doctor.profiles import satisfies, version_of
from core.language import tr, tr_later


def python_env(value: Values, needs: Needs) -> Verdict:
    """Every stage runs under the training Python; another one than was meant answers where a shell's start-up files change PATH."""
    if needs.profile.conda:
        another = setup.create_environment(needs)
    elif needs.megatron:
        another = advice("python.env", "llm-wizard run ... --set megatron.python=/path/to/another/python")
    else:
        another = advice("python.env", "llm-wizard run ... --set cluster.python=/path/to/a/newer/python")
    if "error" in value:
        return Verdict(
            "fail",
            tr("{python} does not run", python=value["executable"]),
            expected=tr("a Python that runs a small script"),
            found=str(value["error"]),
            why=tr("every stage runs under it"),
            fix=another,
        )
    version = version_of(value["version"])
    summary = tr("Python {version} at {python}", version=value["version"], python=value["executable"])
    wanted = ".".join(map(str, needs.profile.python))
    if needs.unset:
        return Verdict(
            "fail",
            tr("{key} is not set", key=needs.unset),
            expected=f"{needs.unset}: {needs.python}",
            found=tr("empty: the run would start the Python of this tool"),
            why=tr("the original's packages are in an environment of their own"),
            fix=advice("python.env", f"llm-wizard run ... --set {needs.unset}={needs.python}"),
            stages=("data", "pretrain", "finetune"),
        )
    if needs.profile.python_exact and version[:2] != needs.profile.python:
        return Verdict(
            "fail" if needs.exact else "warn",
            tr("{python} is not Python {wanted}", python=summary, wanted=wanted),
            expected=tr("Python {wanted}", wanted=wanted),
            found=value["version"],
            why=tr("the original's packages at their pins are built for it"),
            fix=another,
        )
    if version < needs.profile.python:
        return Verdict(
            "fail",
            tr("{python} is too old", python=summary),
            expected=tr("Python {wanted} or later", wanted=wanted),
            found=value["version"],
            why=tr("the stages' own code does not run under it"),
            fix=another,
        )
    return Verdict("pass", summary)


def compare_pythons(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """One node with another Python computes with other packages, or not at all."""
    verdicts = {node: python_env(value, needs) for node, value in values.items()}
    bad = {node: verdict for node, verdict in verdicts.items() if verdict.status != "pass"}
    return bad or differences(
        {node: f"{value['version']} {value['executable']}" for node, value in values.items()},
        expected=tr("the same Python on every node"),
        why=tr("ranks that run other code fail late and far from the cause"),
    )


def python_pins(value: Values, needs: Needs) -> Verdict:
    """A stage that lacks a package, or has one of another generation, fails after the minutes that came before it."""
    versions, requires = value["versions"], needs.profile.requires
    missing = [name for name in needs.packages if versions[name] is None]
    wrong = [
        name
        for name in needs.packages
        if versions[name] and name in requires and not satisfies(versions[name], requires[name])
    ]
    if not missing and not wrong:
        # A nightly's "2.13.0.dev" still says enough.
        return Verdict("pass", ", ".join(f"{name} {versions[name]}" for name in needs.packages))
    wanted = sorted(missing + wrong)
    exact = needs.original or needs.profile.name == "megatron-modern"
    parts = [tr("not installed: {names}", names=", ".join(missing))] if missing else []
    if wrong:
        found = ", ".join(f"{name} {versions[name]}" for name in wrong)
        parts.append(tr("not at their pins: {found}", found=found) if exact else tr("too old: {found}", found=found))
    if exact and needs.megatron:
        fix = setup.install_requirements(needs)
    else:
        # torch before DeepSpeed, whose own build imports it.
        rounds = (
            [["torch"], [name for name in wanted if name != "torch"]]
            if {"torch", "deepspeed"} <= {*wanted}
            else [wanted]
        )
        install = (needs.python, "-m", "pip", "install")
        commands = (Command((*install, *(name + requires.get(name, "") for name in names))) for names in rounds)
        fix = Fix("python.pins", "safe" if not wrong else "rebuild", tuple(commands))
    blocked = {stage for name in wanted for stage in needs.packages[name]}
    return Verdict(
        "fail" if missing or needs.exact or not needs.original else "warn",
        "; ".join(parts),
        expected=", ".join(name + requires.get(name, "") for name in wanted),
        found=", ".join(f"{name} {versions[name] or tr('absent')}" for name in wanted),
        why="; ".join(f"{name}: {', '.join(needs.packages[name])}" for name in wanted),
        fix=fix,
        stages=tuple(stage for stage in needs.stages if stage in blocked),
    )


def compare_pins(values: Mapping[str, Values], needs: Needs) -> dict[str, Verdict]:
    """Nodes with other versions of one package compute other things, or hang in their first collective."""
    verdicts = {node: python_pins(value, needs) for node, value in values.items()}
    bad = {node: verdict for node, verdict in verdicts.items() if verdict.status != "pass"}
    odd = differences(
        {
            node: ", ".join(f"{name} {version}" for name, version in sorted(value["versions"].items()) if version)
            for node, value in values.items()
        },
        expected=tr("the same versions on every node"),
        why=tr("ranks with other versions of a package fail late and far from the cause"),
    )
    if bad:
        return bad | {node: verdict for node, verdict in odd.items() if verdict.status != "pass" and node not in bad}
    return odd


def numpy_abi(value: Values, needs: Needs) -> Verdict:
    """torch before 2.3 was compiled against NumPy 1 and cannot exchange arrays with NumPy 2."""
    numpy, torch = value["versions"]["numpy"], value["versions"]["torch"]
    if numpy is None or torch is None:
        return Verdict("skip", tr("NumPy or torch is not installed"))
    if version_of(numpy) >= (2,) and version_of(torch) < (2, 3):
        return Verdict(
            "fail" if needs.torch else "warn",
            tr("torch {torch} cannot work with NumPy {numpy}", torch=torch, numpy=numpy),
            expected="numpy<2",
            found=f"numpy {numpy}",
            why=tr("it was compiled against NumPy 1: every exchange of arrays fails with “Numpy is not available”"),
            fix=Fix("python.numpy_abi", "rebuild", (Command((needs.python, "-m", "pip", "install", "numpy<2")),)),
            stages=needs.packages.get("torch"),
        )
    return Verdict("pass", tr("NumPy {numpy} with torch {torch}", numpy=numpy, torch=torch))


def pip_check(value: Values, needs: Needs) -> Verdict:
    """Packages that contradict each other, and a pip that silently drops the options that build apex's extensions."""
    pip, conflicts = value["pip"], list(value["conflicts"])
    if pip is None:
        return Verdict(
            "warn",
            tr("this Python has no pip"),
            expected=tr("pip, for whatever is to be installed"),
            found=str(value["error"]),
            why=tr("nothing can be installed into this environment as it is"),
            fix=Fix("python.pip_check", "safe", (Command((needs.python, "-m", "ensurepip", "--upgrade")),)),
        )
    if needs.original and not satisfies(pip, ">=23.1"):
        return Verdict(
            "fail",
            tr("pip {pip} is too old to build apex", pip=pip),
            expected="pip>=23.1",
            found=pip,
            why=tr("it passes over --config-settings and builds an apex without extensions"),
            fix=setup.install_pip(needs),
            stages=("pretrain",),
        )
    if conflicts:
        return Verdict(
            "warn",
            tr("{count} packages do not fit together", count=len(conflicts)),
            expected=tr("`pip check` finds nothing"),
            found="; ".join(conflicts[:5]),
            why=tr("a library may fail when it meets a version that it was not made for"),
            fix=advice("python.pip_check", f"{needs.python} -m pip check"),
        )
    return Verdict("pass", tr("pip {pip}; no conflicts", pip=pip))


def encoding(value: Values, needs: Needs) -> Verdict:
    """File names and text that are not ASCII come out garbled where the locale is not UTF-8."""
    named = {key: str(value[key]) for key in ("filesystem", "preferred")}
    odd = {key: name for key, name in named.items() if name.lower().replace("-", "") != "utf8"}
    if odd:
        return Verdict(
            "warn",
            tr("text is not UTF-8 by default: {found}", found=", ".join(f"{key} {name}" for key, name in odd.items())),
            expected="utf-8",
            found=", ".join(f"{key}={name}" for key, name in value["variables"].items()) or tr("no LANG"),
            why=tr("file names and log lines that are not ASCII may come out garbled"),
            fix=advice("python.encoding", "export LANG=C.UTF-8"),
        )
    return Verdict("pass", "UTF-8")


def ld_library_path(value: Values, needs: Needs) -> Verdict:
    """A second libcudart, libnccl or libstdc++ on LD_LIBRARY_PATH is loaded instead of the environment's own."""
    prefix = str(value["prefix"])
    resolved, path = dict(value["resolved"]), list(value["path"])
    own = [prefix, str(value["torch"] or prefix)]
    shadowed = {
        name: where
        for name, where in resolved.items()
        if not any(where.startswith(folder + "/") for folder in own) and any(where.startswith(f + "/") for f in path)
    }
    if shadowed:
        return Verdict(
            "warn",
            tr("the loader takes {names} from outside the environment", names=", ".join(sorted(shadowed))),
            expected=tr("libraries under {prefix}", prefix=prefix),
            found=", ".join(f"{name} => {where}" for name, where in sorted(shadowed.items())),
            why=tr("another version than torch was built with may fail on a symbol, or hang"),
            fix=advice("python.ld_library_path", f"export LD_LIBRARY_PATH={prefix}/lib"),
        )
    if needs.original and f"{prefix}/lib" not in path and "edit_environment_variable.sh" not in value["hooks"]:
        return Verdict(
            "warn",
            tr("LD_LIBRARY_PATH does not hold {folder}", folder=f"{prefix}/lib"),
            expected=f"{prefix}/lib",
            found=":".join(path) or tr("empty"),
            why=tr("extensions find the environment's libstdc++ and CUDA libraries through it"),
            fix=setup.write_hooks(needs),
        )
    return Verdict("pass", tr("nothing shadows the environment's libraries"))


def bashrc(value: Values, needs: Needs) -> Verdict:
    """Set-up that is repeated inserts its lines into ~/.bashrc again; a line that prints there breaks scp, pdsh and our own ssh."""
    repeated = [(int(number), str(line)) for number, line in value["repeated"]]
    path, prints, complains = str(value["path"]), str(value["prints"]), str(value["complains"])
    if prints:
        return Verdict(
            "fail",
            tr("the shell prints when it starts without a terminal"),
            expected=tr("no output from `ssh NODE true`"),
            found=prints,
            why=tr("scp, pdsh and every program that talks over ssh read those words as their own data"),
            fix=advice("shell.bashrc_dup", f"$EDITOR {path}", "# " + tr("print only where $- holds an i")),
        )
    if locale := re.search(r"cannot change locale \(([^)]*)\)", complains):
        return Verdict(
            "warn",
            tr("the locale {name} is not installed", name=locale[1]),
            expected=tr("a locale that `locale -a` lists"),
            found=complains,
            why=tr("every shell complains about it, and programs read text as ASCII"),
            fix=advice(
                "shell.bashrc_dup",
                "export LC_ALL=C.UTF-8",
                "# " + tr("or an administrator installs it: {command}", command=f"locale-gen {locale[1]}"),
            ),
        )
    if complains:
        return Verdict(
            "warn",
            tr("the shell complains when it starts without a terminal"),
            expected=tr("no output from `ssh NODE true`"),
            found=complains,
            why=tr("the words stand among the output of every node, and what they complain of was not done"),
            fix=advice("shell.bashrc_dup", f"$EDITOR {path}"),
        )
    if repeated:
        return Verdict(
            "warn",
            tr("{count} lines of {path} stand there more than once", count=len(repeated), path=path),
            expected=tr("each set-up line once"),
            found="; ".join(f"{number}: {line.strip()}" for number, line in repeated[:5]),
            why=tr("every shell runs them again; `conda activate` takes half a second each time"),
            fix=Fix("shell.bashrc_dup", "destructive", (RemoveLines(path, tuple(repeated)),)),
        )
    return Verdict("pass", tr("{path} repeats nothing and prints nothing", path=path))


CHECKS: tuple[Check, ...] = (
    Check(
        "python.env", tr_later("the training Python"), "python", python_env, compare=compare_pythons, fix="setup.env"
    ),
    Check(
        "python.pins", tr_later("the Python packages"), "python", python_pins, compare=compare_pins, fix="python.pins"
    ),
    Check("python.encoding", tr_later("the text encoding"), "python", encoding),
    Check(
        "python.numpy_abi",
        tr_later("NumPy and torch"),
        "python",
        numpy_abi,
        observes="python.pins",
        fix="python.numpy_abi",
    ),
    Check("python.pip_check", tr_later("pip and its check"), "python", pip_check, tier="full", fix="python.pip_check"),
    Check("python.ld_library_path", tr_later("the library path"), "python", ld_library_path, fix="setup.hooks"),
    Check(
        "shell.bashrc_dup",
        tr_later("the shell's start-up file"),
        "python",
        bashrc,
        scope="head",
        fix="shell.bashrc_dup",
    ),
)
