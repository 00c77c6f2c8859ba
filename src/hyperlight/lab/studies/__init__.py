"""The studies: ``hyperlight study NAME`` reproduces a figure or table of the paper."""

from . import (
    dimension,
    family_scale_space,
    fig1a,
    fig1b,
    fig3,
    fig3c,
    fig4a,
    fig4b,
    fig4c,
    fig5a,
    fig5b,
    fig5c,
    fig6,
    fig7,
    fig8,
    fig9,
    knobs,
    lr,
    rates,
    rates_mnist,
    registration,
    registration_full,
    registration_steps,
    runtime,
    sgd,
    statements,
    table2,
    uncertainty,
    width,
)
from .base import Results, Setup, Size, Study

__all__ = ["STUDIES", "Results", "Setup", "Size", "Study"]

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        *(fig1a.STUDY, fig1b.STUDY, fig3.WEIGHTS, fig3.OUTPUTS, fig3c.STUDY),
        *(fig4a.STUDY, fig4b.STUDY, fig4c.STUDY, fig5a.STUDY, fig5b.STUDY, fig5c.STUDY),
        *(fig6.STUDY, fig7.STUDY, fig8.STUDY, fig9.STUDY),
        *(table2.STUDY, lr.STUDY, sgd.STUDY, runtime.STUDY, statements.STUDY),
        *(dimension.STUDY, rates.STUDY, rates_mnist.STUDY, family_scale_space.STUDY),
        *(registration.STUDY, registration_full.STUDY, registration_steps.STUDY, width.STUDY),
        uncertainty.STUDY,
        *(knobs.TRADE_OFF, knobs.DECISION_COST, knobs.ADAPTERS, knobs.IMPLICIT),
        knobs.EQUATIONS,
    )
}
