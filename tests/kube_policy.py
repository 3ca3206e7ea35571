"""The rules of a Job, as the stand-in's controller reads them: failures, success, indexes."""

from __future__ import annotations

from collections.abc import Iterable

from kube_objects import Object


def matches(rule: Object, pod: Object) -> bool:
    """Tell whether a rule of the podFailurePolicy is one for a failed pod."""
    for wanted in rule.get("onPodConditions") or []:
        for found in pod["status"].get("conditions", []):
            if (found["type"], found["status"]) == (wanted["type"], wanted.get("status", "True")):
                return True
    wanted = rule.get("onExitCodes")
    if not wanted:
        return False
    for status in pod["status"].get("containerStatuses", []):
        code = status["state"].get("terminated", {}).get("exitCode", 0)
        named = wanted.get("containerName") in (None, status["name"])
        if named and code and (code in wanted["values"]) == (wanted["operator"] == "In"):
            return True
    return False


def failure_action(spec: Object, pod: Object) -> tuple[str, int]:
    """Give what the podFailurePolicy makes of a failed pod, and the number of its rule."""
    for number, rule in enumerate((spec.get("podFailurePolicy") or {}).get("rules", [])):
        if matches(rule, pod):
            return rule["action"], number
    return "Count", -1


def success_rule(spec: Object, succeeded: set[int]) -> int | None:
    """Give the number of the first rule of the successPolicy that is met, None for none."""
    for number, rule in enumerate((spec.get("successPolicy") or {}).get("rules", [])):
        named = rule.get("succeededIndexes")
        wanted = succeeded if named is None else read_indexes(named)
        if succeeded and len(wanted & succeeded) >= rule.get("succeededCount", len(wanted)):
            return number
    return None


def read_indexes(text: str) -> set[int]:
    """Read indexes as Kubernetes writes them: `0,2-4`."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def write_indexes(indexes: Iterable[int]) -> str:
    """Write indexes as Kubernetes does: three and more in a row as `2-4`."""
    rows: list[list[int]] = []
    for index in sorted(indexes):
        if rows and index == rows[-1][-1] + 1:
            rows[-1].append(index)
        else:
            rows.append([index])
    return ",".join(
        f"{row[0]}-{row[-1]}" if len(row) > 2 else ",".join(map(str, row)) for row in rows
    )
