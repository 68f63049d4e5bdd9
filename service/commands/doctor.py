"""`clipwatch doctor`: checks everything that the service needs, and says how to mend what is wrong."""

import click

from service.commands.errors import CommandError


@click.command()
def doctor() -> None:
    """Check everything the service needs; exit status 3 if something is wrong."""
    from pydantic import ValidationError

    from service.commands.doctor_checks import CheckFailed, checks
    from service.settings import get_settings
    from service.store import one_line

    try:
        settings = get_settings()
    except ValidationError as error:
        wrong = "; ".join(f"CLIPWATCH_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise CommandError(f"settings: {wrong}") from error
    broken = 0
    for check in checks():
        try:
            click.echo(f"{click.style('ok', fg='green'):<8} {check.name}: {check.look(settings)}")
        except Exception as error:
            broken += 1
            hint = error.args[1] if isinstance(error, CheckFailed) and len(error.args) > 1 else check.hint
            what = (
                error.args[0] if isinstance(error, CheckFailed) else f"{type(error).__name__}: {one_line(error, 200)}"
            )
            click.echo(f"{click.style('problem', fg='red')} {check.name}: {what}\n        → {hint}")
    if broken:
        raise CommandError(f"{broken} problem{'s' if broken > 1 else ''}")
