"""Benchmarks that others keep, with any model that `gamut.load` opens: HEAR and X-ARES, their interfaces and layouts.

hear-validator gamut.benchmarks.hear -m runs/asit_b
GAMUT_MODEL=runs/asit_b python -m xares.run gamut/benchmarks/xares.py tasks/esc10_task.py --max-jobs 0
"""
