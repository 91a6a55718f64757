"""Runs that a filter of MLflow's finds, as in the search field of its page."""

from __future__ import annotations

from collections.abc import Iterable

from kd.integrations.store import Store, quiet
from kd.runtime.messages import ConfigError, shown
from kd.studies.study import Study


def paths_of(wanted: str, studies: Iterable[Study]) -> frozenset[str]:
    """Return the folders, below the results folder, of the runs of some studies that a filter finds in MLflow.

    Raises ConfigError for a filter that MLflow does not understand, a store that is away, and where nothing is found.
    """
    paths: set[str] = set()
    for study in studies:
        store = Store(study.tracking, study.root)
        try:
            with quiet():
                client = store.client()
                if (experiment := client.get_experiment_by_name(study.name)) is None:
                    raise ConfigError(
                        f"{shown(wanted)}: {store.name} has no experiment {study.name}; `python -m kd sync "
                        f"{study.settings['study']}` sends the study there"
                    )
                token: str | None = ""
                while token is not None:
                    page = client.search_runs([experiment.experiment_id], wanted, page_token=token or None)
                    paths |= {run.data.tags["path"] for run in page if "path" in run.data.tags}
                    token = page.token or None
        except ConfigError:
            raise
        except Exception as error:
            if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE":
                said = " ".join(str(error).split())
                raise ConfigError(f"{shown(wanted)}: MLflow refuses this filter: {said}") from None
            raise ConfigError(f"{shown(wanted)}: {store.trouble(error)}") from None
    if not paths:
        raise ConfigError(f"{shown(wanted)}: no run in MLflow fits; try it in the search field of MLflow's page")
    return frozenset(paths)
