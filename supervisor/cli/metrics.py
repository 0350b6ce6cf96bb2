"""`metrics`: what Prometheus and Grafana are given, and a list of what there is to be asked."""

from __future__ import annotations

import click

from supervisor.cli import options
from supervisor.cli.output import print_json, table


@click.group("metrics")
def metrics() -> None:
    """Print the Grafana dashboard and the alert rules for what `run --metrics [HOST:]PORT` serves, or the list of its metrics.

    \b
    python -m supervisor metrics grafana > dashboard.json    # import it in Grafana
    python -m supervisor metrics rules > pgsupervisor.yml    # under rule_files in prometheus.yml
    """


@metrics.command("grafana")
def grafana() -> None:
    """The dashboard, JSON to be imported in Grafana; it asks for the data source."""
    click.echo(_file("grafana.json"), nl=False)


@metrics.command("rules")
def rules() -> None:
    """Alert rules, YAML for rule_files of Prometheus."""
    click.echo(_file("rules.yml"), nl=False)


@metrics.command("list")
@options.as_json
def list_metrics(as_json: bool) -> None:
    """Name, type, labels and meaning of every metric."""
    from supervisor.metrics.catalogue import METRICS, PREFIX

    if as_json:
        print_json([{"name": PREFIX + name, "type": each.kind, "labels": each.labels, "unit": each.unit(name), "meaning": each.meaning} for name, each in METRICS.items()])
    else:
        click.echo(table(("metric", "type", "labels", "meaning"), [(PREFIX + name, each.kind, ", ".join(each.labels), each.meaning) for name, each in METRICS.items()]))


@metrics.command("serve", hidden=True)
@click.option("--fd", type=int, required=True)
@click.option("--beside", type=int, required=True, help="The host that it belongs to, and that it ends with.")
@options.schema
def serve(fd: int, beside: int, schema: str | None) -> None:
    """The process that a host starts beside itself."""
    from supervisor.core import settings
    from supervisor.db import connect as db
    from supervisor.host import logs
    from supervisor.metrics.serve import serve

    told = settings.load()
    logs.to_terminal(told.log_level, told.log_format)
    serve(fd, beside, db.resolve_dsn(None), options.resolve_schema(schema))


def _file(name: str) -> str:
    from importlib.resources import files

    return (files("supervisor.metrics") / name).read_text("utf-8")
