"""Every figure and table of the paper as a command: ``hyperlight study NAME``."""

from . import (
    dimension,
    family_hypermorph,
    family_scale_space,
    fig1a,
    fig1b,
    fig3a,
    fig3b,
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
    lr,
    rates,
    runtime,
    table2,
)
from .base import Place, Results, Size, Study

__all__ = ["STUDIES", "Place", "Results", "Size", "Study"]

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        *(fig1a, fig1b, fig3a, fig3b, fig3c, fig4a, fig4b, fig4c, fig5a, fig5b, fig5c),
        *(fig6, fig7, fig8, fig9, table2, lr, runtime),
        *(dimension, rates, family_hypermorph, family_scale_space),
    )
}
