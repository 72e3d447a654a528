"""``ranvier deploy``: put a server of several workers onto this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ranvier.deploy.actions import Action, DeployError
from ranvier.deploy.commands import commands, hints, serving, starting
from ranvier.deploy.nginx import public_routes
from ranvier.deploy.plan import Plan, Planner
from ranvier.deploy.record import Record, read_record
from ranvier.deploy.settings import MAX_WORKERS, Settings, SettingsError, check_settings, service_name
from ranvier.deploy.system import own_program, system_of
from ranvier.deploy.target import Target

PathOption = click.Path(path_type=Path)


@click.command()
@click.option("--server-name", metavar="NAME", help="What user IDs end with, such as example.org.")
@click.option(
    "--public-name", metavar="HOST", help="The host that clients connect to. Default: --server-name."
)
@click.option(
    "--workers", metavar="NUMBER_OR_NAMES", help="How many workers besides the first, or their names: a,b,c."
)
@click.option("--certificate", type=PathOption, help="The web server's certificate chain (PEM).")
@click.option("--certificate-key", type=PathOption, help="The certificate's private key (PEM).")
@click.option("--user", help="The user that the server runs as. Default: ranvier.")
@click.option("--group", help="The group that shares the sockets' folder. Default: ranvier-sockets.")
@click.option("--redis-user", help="The user that Redis runs as. Default: redis.")
@click.option("--web-user", help="The user that the web server runs as. Default: www-data.")
@click.option("--redis-config", type=PathOption, help="Default: /etc/redis/redis.conf.")
@click.option("--redis-service", help="Default: redis-server.service; another: redis-server@NAME.")
@click.option("--program", type=PathOption, help="The command `ranvier`. Default: the one that runs now.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/",
    help="Write into this folder as if it were /, and run no command of a service.",
)
@click.option("--dry-run", is_flag=True, help="Show each file and command, and do nothing.")
@click.option("--start/--no-start", default=True, help="Start the server at the end, and let nginx ask it.")
def deploy(root: Path, dry_run: bool, start: bool, **options: Any) -> None:
    """Put a server of several workers onto a machine with systemd, PostgreSQL, Redis and nginx.

    What is as it should be is left alone, so it may be run again at any time: to add workers, or after an
    update. Options that are not given are as they were in the last run.
    """
    target = Target(root)
    try:
        before = read_record(target)
        settings = _settings(before, options)
        plan = _plan(target, settings, before, start=start)
    except PermissionError as error:
        raise click.ClickException(f"{error}; run this as root") from error
    except (DeployError, OSError) as error:
        raise click.ClickException(str(error)) from error
    try:
        for action in plan.actions:
            _do(action, target, dry_run=dry_run)
    finally:  # they often say why something failed
        for note in plan.notes:
            click.echo(f"Note: {note}")
    if not plan.actions:
        click.echo("Nothing to do: everything is as it should be.")
    elif dry_run:
        click.echo("Nothing was done: this was a dry run.")


def _plan(target: Target, settings: Settings, before: Record, *, start: bool) -> Plan:
    system = system_of(target)
    plan = Planner(target, settings, before, public_routes(), system, start=start).make()
    if system is not None:
        plan.actions += commands(system, settings, plan, start=start)
    elif plan.actions:
        plan.notes.append("services are started when this is run on a machine with systemd, without --root")
    plan.actions += plan.last
    if system is not None and start:
        plan.actions += starting(system, settings, plan)
    if system is not None:
        plan.actions += serving(system, plan)
    plan.notes += hints(before, settings, plan, system)
    return plan


def _do(action: Action, target: Target, *, dry_run: bool) -> None:
    if dry_run:
        click.echo(f"Would {action.summary()}\n{action.detail()}", nl=False)
        return
    try:
        action.apply(target)
    except (DeployError, OSError, LookupError) as error:
        raise click.ClickException(f"could not {action.summary()}: {error}") from error
    click.echo(f"Did {action.summary()}")


def _settings(before: Record, options: dict[str, Any]) -> Settings:
    known = before.settings
    given = {key: value for key, value in options.items() if value is not None}
    if "workers" in given:
        given["workers"] = _worker_names(given["workers"])
    if "redis_service" in given:
        given["redis_service"] = service_name(given["redis_service"])
    if known is None:
        if "server_name" not in given:
            raise click.UsageError("the first time, give --server-name")
        given.setdefault("public_name", given["server_name"].partition(":")[0])
        given.setdefault("program", own_program() or Settings("", "").program)
        settings = Settings(**given)
    else:
        settings = replace(known, **given)
        _check_same(settings, known)
    try:
        check_settings(settings)
    except SettingsError as error:
        raise click.UsageError(str(error)) from error
    return settings


def _check_same(settings: Settings, known: Settings) -> None:
    """Refuse to change what a server that runs cannot change."""
    if settings.server_name != known.server_name:
        raise click.UsageError(f"this server is {known.server_name}, and a server's name cannot be changed")
    if settings.user != known.user:
        raise click.UsageError(
            f"this server runs as {known.user}, who has its files and its database, and cannot be changed"
        )
    if settings.group != known.group:
        raise click.UsageError(
            f"the sockets of this server are for the group {known.group}, in which its workers, Redis and "
            "nginx are since they started, and which cannot be changed"
        )


def _worker_names(text: str) -> tuple[str, ...]:
    if text.isdecimal() and text.isascii():
        number = min(int(text), MAX_WORKERS + 1)  # one too many is refused, as a thousand are
        return tuple(f"worker{place}" for place in range(1, number + 1))
    return tuple(name.strip() for name in text.split(","))
