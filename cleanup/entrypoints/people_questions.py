"""Who may be one person seen twice, or twins: what is open, and what a person says about it."""

from __future__ import annotations

from functools import partial

from cleanup.edges.artifact_reading import read_episode
from cleanup.edges.data_root import DataRoot
from cleanup.entrypoints.people_labels import change_episode
from cleanup.episode import Episode
from cleanup.names import EpId
from cleanup.phases.human_verdicts import join_identities, say_two_people
from cleanup.phases.identity_rows import refresh_identity_figures
from cleanup.phases.seen_together import Question, find_questions, judge_shared_frames
from cleanup.phases.track_samples import pool_tracks
from cleanup.settings import PoolingSettings


def list_questions(root: DataRoot, ep_id: EpId, pooling: PoolingSettings) -> list[Question]:
    """The open questions of an episode, from its files as they are now; those with the most frames first.

    Raises:
        CleanupError: The episode has no artifacts, or they cannot be read.
    """
    root.check_episode(ep_id)
    episode = root.read_settled(ep_id, read_episode)
    return find_questions(episode, judge_shared_frames(episode, pool_tracks(episode, pooling)))


def set_apart(root: DataRoot, ep_id: EpId, first: str, second: str, n_backups: int) -> bool:
    """Says that two identities are two people, in the episode's file.

    Returns:
        Whether that was not known yet.
    """
    return change_episode(root, ep_id, partial(say_two_people, first=first, second=second), n_backups)


def join(root: DataRoot, ep_id: EpId, identity_id: str, into: str, pooling: PoolingSettings, n_backups: int) -> None:
    """Says that two identities are one person: the first one's tracks are the second one's, in the episode's file."""

    def change(episode: Episode) -> Episode:
        return refresh_identity_figures(join_identities(episode, identity_id, into), pooling, None)

    change_episode(root, ep_id, change, n_backups)
