"""Imported last: leaves all that is there out of garbage collection, here and in the processes forked from this one."""

import gc

gc.collect()
gc.freeze()
