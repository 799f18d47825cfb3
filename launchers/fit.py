"""Whether a recipe gives all ranks of a job something to do, and what the job would take."""

from __future__ import annotations

from gamut.errors import GamutError, RecipeError
from gamut.plan.balance import WASTE, idle, rests
from gamut.recipe.find import CONFIGS, list_recipes
from gamut.recipe.load import load_recipe
from gamut.recipe.schema import Recipe
from launchers.cluster import Cluster


def require_fit(stage: str, name: str, recipe: Recipe, cluster: Cluster) -> str:
    """A warning where more than 5 % of the ranks' time goes by without a pack, or "".

    Raises RecipeError where GPUs would never have one. Both name what fits.
    """
    packs, ranks = recipe.step.packs, cluster.tasks
    said = rests(packs, ranks)
    if not said:
        return ""
    said = f"A step of {name} has {packs} packs (step.packs), so {said}. {_what_fits(stage, name, packs, cluster)}"
    if packs < ranks and cluster.gpus:
        raise RecipeError(said)
    return said


def _what_fits(stage: str, name: str, packs: int, cluster: Cluster) -> str:
    ranks, each = cluster.tasks, cluster.tasks_per_node
    more = -(-packs // ranks) * ranks
    ways = [f"step.packs={more} (and with it the clips of a step, which the learning rate goes by)"]
    for other in list_recipes(stage, CONFIGS):
        if other.startswith(f"{name}_") and idle(load_recipe(stage, other).step.packs, ranks) <= WASTE:
            ways.insert(0, f"the recipe {other}")
            break
    fewer = [(nodes * on, on, nodes) for nodes in range(1, cluster.nodes + 1) for on in range(1, each + 1)]
    _, on, nodes = max(one for one in fewer if idle(packs, one[0]) <= WASTE)
    ways.append(f"--nodes {nodes} {'--gpus' if cluster.gpus else '--cpus-only'} {on}")
    return f"What fits: {'; or '.join(ways)}."


def forecast_lines(recipe: Recipe, cluster: Cluster, gpu: str) -> list[str]:
    """Memory a GPU, clips/s a GPU, hours; none for a job without GPUs, and the reason where there is no forecast."""
    if not cluster.gpus:
        return []
    from gamut.estimate.forecast import estimate  # here, as whatever takes long to import
    from gamut.estimate.rates import of_sheet
    from gamut.estimate.report import main_lines

    try:
        made = estimate(recipe, of_sheet(gpu), cluster.nodes, cluster.gpus)
    except (GamutError, OSError) as error:
        return [f"no forecast: {error}"]
    clips = made.account.work.sounds.said
    return [*main_lines(made), f"an estimate, of {clips}; `python -m gamut.estimate` says more, and what it leaves out"]
