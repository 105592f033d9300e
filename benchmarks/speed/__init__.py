"""`make bench`: how fast training and answering are, beside what others reach on the same weights and samples.

    python -m benchmarks.speed                    # everything
    python -m benchmarks.speed decode batch8      # some rows
    python -m benchmarks.speed --list             # what there is

Sides that are compared live in processes of their own, which stay alive and are told over a socket to run the next
piece, in turn: A B A B. So they do not share an allocator, compiled code is warm, and what else happens on the machine
hits both. `rows.py` says what is measured and held against which bar, `groups.py` runs it, `report.py` writes it down.
"""
