"""Which control keys there are, and which are no longer needed (rollouts.md). Pure.

A key is made when there is none, when its Secret is gone, and when somebody asks for one. New
revisions have the newest key, so that a rotation is a rollout. The ring holds the keys of all
groups meanwhile: routers mount it, and an operator that starts anew finds there which one is
active.

Compile caches have keys of their own: one for each claim, which all PDServings of the namespace
share and none owns; and one of a PDServing's own where its cache is on no claim.
"""

from pds_operator import names
from pds_operator.decide.actions import Delete, KeepRing, MakeCacheKey, MakeKey, MakeSeal, Say
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import ControlKeys, Observed
from pds_operator.render import volumes


def active(observed: Observed) -> str:
    """The id of the key that new revisions have.

    The ring says so, before the Secret of a new key is made; without a ring it is the key of the
    newest revision.
    """
    if observed.keys is not None and observed.keys.active is not None:
        return observed.keys.active
    newest = max(observed.revisions.values(), key=lambda item: item.number, default=None)
    return newest.key if newest else ""


def keep(round_: Round, target: Target | None) -> None:
    """Make keys, keep the ring, and delete keys that nobody has any more."""
    observed = round_.observed
    keys = observed.keys
    if keys is None:
        return
    if not _made(round_, keys):
        _clear(round_, keys, target)
    _keep_seals(round_, keys, target)


def _keep_seals(round_: Round, keys: ControlKeys, target: Target | None) -> None:
    """The keys of compile caches, as revisions mount them that have pods or are to have some."""
    observed, asked = round_.observed, round_.asked
    used = {pod.revision for pod in observed.pods} | {asked.digest}
    if target is not None:
        used |= {target.digest, *([target.good.digest] if target.good else [])}
    found = [volumes.sealed(r.data) for r in observed.revisions.values() if r.digest in used]
    shared = {name: claim for _, claims in found for name, claim in claims.items()}
    round_.actions += [
        MakeSeal(claim) for name, claim in sorted(shared.items()) if name not in keys.seals
    ]
    own = names.cache_key(asked.owner.name)
    needed = any(own in mounted for mounted, _ in found)
    if not keys.cache and (needed or not volumes.claim(asked.spec, asked.owner.name)):
        # What stands in a volume was sealed with the first key, by the releases that had no other.
        copied = bool(observed.revisions or observed.pods)
        round_.actions.append(MakeCacheKey(copied))


def _made(round_: Round, keys: ControlKeys) -> bool:
    """A new key is made in this round."""
    desired = round_.asked
    secret, name = keys.secrets.get(desired.key), desired.owner.name
    if secret is None:
        first = keys.ring is None and not desired.key and not _begun(round_.observed)
        if desired.key in keys.awaited and not first:
            return False  # nor is anything made that mounts it (`ownership.yielding`)
        said = f"the Secret {names.control_secret(name, desired.key)} is gone"
    elif desired.rotate and desired.rotate != secret.asked:
        first, said = False, f"new control keys are asked for ({desired.rotate})"
    else:
        return False
    round_.actions.append(MakeKey(first, desired.rotate))
    if first:
        round_.actions.append(KeepRing(frozenset({""}), ""))
    else:
        text = f"{said}: groups with a new control key take the place of the others"
        round_.actions.append(Say("KeysRotated", text, warning=secret is None, scope="keys"))
    return True


def _begun(observed: Observed) -> bool:
    """A pod has read a key, so that another of the same name would not be the same one."""
    return any(pod.started for pod in observed.pods)


def _clear(round_: Round, keys: ControlKeys, target: Target | None) -> None:
    desired = round_.asked
    used = {pod.key for pod in round_.observed.pods} | {desired.key}
    whole = target is not None and target.settled and target.revision.key == desired.key
    kept = used if whole else used | set(keys.secrets)
    ring = frozenset(kept & keys.held)
    if keys.ring != ring or keys.active != desired.key:
        round_.actions.append(KeepRing(ring, desired.key))
    for key in sorted(set(keys.secrets) - kept):
        name = names.control_secret(desired.owner.name, key)
        round_.actions.append(Delete("Secret", name, keys.secrets[key].uid, "keys"))
