"""When a teacher has nothing to teach any more."""

from __future__ import annotations

import math

# Of the largest entropy, log K; of what the spread could be; of the largest mean of cosines, sqrt(K). Healthy runs were
# seen at 0.02 to 0.95 (below 0.6 with a teacher_temperature of 0.04), 0.3 to 1 and 0.02 to 0.1.
EVEN, ONE_CLASS, SAME, AWAY = 0.9999, 0.001, 0.001, 1.0


def collapse(of: str, outputs: int, values: dict[str, float], spread: float) -> str:
    """What is wrong with a step's predictions, in words, or "".

    A teacher whose distributions are all even or all one prototype (DINO, section 5.3), or the same for all that it
    hears, teaches nothing; nor does one whose outputs run away in a direction, faster than its centre follows.

    of: "" for class tokens, "_data" for data tokens; outputs: K; values: the step's metrics, of which one that is not
    there is not looked at; spread: `Spread.share`.
    """
    norm = values.get(f"teacher/centre_norm{of}", 0.0)
    if not norm <= AWAY * math.sqrt(outputs):
        return f"teacher/centre_norm{of} was {norm:.4g}: the teacher's outputs run away in one direction"
    most = math.log(outputs)
    entropy = values.get(f"teacher/entropy{of}", 0.5 * most) / most
    if entropy > EVEN:
        return f"teacher/entropy{of} was {entropy:.2%} of its most: the teacher finds every prototype as likely"
    if entropy < ONE_CLASS:
        return f"teacher/entropy{of} was {entropy:.2%} of its most: the teacher gives everything to one prototype"
    if spread < SAME:
        return f"teacher/spread{of} was {spread:.2%} of its most: the teacher says the same of all that it hears"
    return ""
