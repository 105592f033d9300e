"""The controlled experiment: variants of a recipe on the same data, in the same order, with the same seeds."""

from llavit.compare.cells import Cell, cells_of
from llavit.compare.grid import Grid, load_grid
from llavit.compare.run import Experiment, run_grid

__all__ = ["Cell", "Experiment", "Grid", "cells_of", "load_grid", "run_grid"]
