"""Runs steps: effects outside the database, each done once per message."""

from consumerkit.steps.lane_steps import HandlerSteps, LaneSteps
from consumerkit.steps.message_steps import MessageSteps
from consumerkit.steps.subject import Prepared, Subject

__all__ = ["HandlerSteps", "LaneSteps", "MessageSteps", "Prepared", "Subject"]
