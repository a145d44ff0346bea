"""Agents that do real work on Celery and Postgres. The public names, loaded when first used.

Importing this opens no connection, reads no file and starts no thread.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "ACPClient": "agentmesh.client",
    "ACPGateway": "agentmesh.console.gateway",
    "ACPServer": "agentmesh.communication.server",
    "Action": "agentmesh.records",
    "AgentCall": "agentmesh.records",
    "AgentController": "agentmesh.coordination.controller",
    "AgentLifecycle": "agentmesh.coordination.lifecycle",
    "AgentRegistry": "agentmesh.coordination.registry",
    "AgentRuntime": "agentmesh.coordination.container",
    "AuditPipeline": "agentmesh.state.audit",
    "BIRRouter": "agentmesh.behavior.router",
    "BehaviorChainEngine": "agentmesh.coordination.engine",
    "BehaviorPlan": "agentmesh.execution.plan",
    "CallbackHandler": "agentmesh.execution.callbacks",
    "ConditionalExecutor": "agentmesh.execution.executors",
    "ContextBinder": "agentmesh.state.contexts",
    "DAGExecutor": "agentmesh.execution.executors",
    "DataAdapter": "agentmesh.execution.adapters",
    "Executor": "agentmesh.execution.executors",
    "HybridReasoner": "agentmesh.behavior.combined",
    "LLMReasoner": "agentmesh.behavior.llm",
    "Later": "agentmesh.records",
    "MemoryEngine": "agentmesh.state.memory",
    "MemoryEntry": "agentmesh.state.memory",
    "ParallelExecutor": "agentmesh.execution.executors",
    "RLPolicyReasoner": "agentmesh.behavior.learned",
    "ReasonerBase": "agentmesh.behavior.reasoners",
    "ReasonerRouter": "agentmesh.behavior.combined",
    "RuleReasoner": "agentmesh.behavior.reasoners",
    "RuntimeContainer": "agentmesh.coordination.container",
    "Scheduler": "agentmesh.coordination.scheduler",
    "SequentialExecutor": "agentmesh.execution.executors",
    "SessionBuilder": "agentmesh.behavior.strategies",
    "SessionManager": "agentmesh.state.contexts",
    "TaskManager": "agentmesh.state.calls",
    "ToolContext": "agentmesh.execution.tools",
    "ToolRegistry": "agentmesh.execution.tools",
    "ToolRouter": "agentmesh.execution.router",
    "Trace": "agentmesh.communication.client",
    "TraceWriter": "agentmesh.state.events",
    "Verdict": "agentmesh.records",
    "define_agent": "agentmesh.behavior.agents",
    "register_callback": "agentmesh.execution.callbacks",
    "register_embedder": "agentmesh.behavior.embedders",
    "register_executor": "agentmesh.execution.executors",
    "register_session_strategy": "agentmesh.behavior.strategies",
    "register_tool": "agentmesh.execution.tools",
}

__all__ = [
    "ACPClient",
    "ACPGateway",
    "ACPServer",
    "Action",
    "AgentCall",
    "AgentController",
    "AgentLifecycle",
    "AgentRegistry",
    "AgentRuntime",
    "AuditPipeline",
    "BIRRouter",
    "BehaviorChainEngine",
    "BehaviorPlan",
    "CallbackHandler",
    "ConditionalExecutor",
    "ContextBinder",
    "DAGExecutor",
    "DataAdapter",
    "Executor",
    "HybridReasoner",
    "LLMReasoner",
    "Later",
    "MemoryEngine",
    "MemoryEntry",
    "ParallelExecutor",
    "RLPolicyReasoner",
    "ReasonerBase",
    "ReasonerRouter",
    "RuleReasoner",
    "RuntimeContainer",
    "Scheduler",
    "SequentialExecutor",
    "SessionBuilder",
    "SessionManager",
    "TaskManager",
    "ToolContext",
    "ToolRegistry",
    "ToolRouter",
    "Trace",
    "TraceWriter",
    "Verdict",
    "define_agent",
    "register_callback",
    "register_embedder",
    "register_executor",
    "register_session_strategy",
    "register_tool",
]

if TYPE_CHECKING:
    from agentmesh.behavior.agents import define_agent
    from agentmesh.behavior.combined import HybridReasoner, ReasonerRouter
    from agentmesh.behavior.embedders import register_embedder
    from agentmesh.behavior.learned import RLPolicyReasoner
    from agentmesh.behavior.llm import LLMReasoner
    from agentmesh.behavior.reasoners import ReasonerBase, RuleReasoner
    from agentmesh.behavior.router import BIRRouter
    from agentmesh.behavior.strategies import SessionBuilder, register_session_strategy
    from agentmesh.client import ACPClient
    from agentmesh.communication.client import Trace
    from agentmesh.communication.server import ACPServer
    from agentmesh.console.gateway import ACPGateway
    from agentmesh.coordination.container import AgentRuntime, RuntimeContainer
    from agentmesh.coordination.controller import AgentController
    from agentmesh.coordination.engine import BehaviorChainEngine
    from agentmesh.coordination.lifecycle import AgentLifecycle
    from agentmesh.coordination.registry import AgentRegistry
    from agentmesh.coordination.scheduler import Scheduler
    from agentmesh.execution.adapters import DataAdapter
    from agentmesh.execution.callbacks import CallbackHandler, register_callback
    from agentmesh.execution.executors import (
        ConditionalExecutor,
        DAGExecutor,
        Executor,
        ParallelExecutor,
        SequentialExecutor,
        register_executor,
    )
    from agentmesh.execution.plan import BehaviorPlan
    from agentmesh.execution.router import ToolRouter
    from agentmesh.execution.tools import ToolContext, ToolRegistry, register_tool
    from agentmesh.records import Action, AgentCall, Later, Verdict
    from agentmesh.state.audit import AuditPipeline
    from agentmesh.state.calls import TaskManager
    from agentmesh.state.contexts import ContextBinder, SessionManager
    from agentmesh.state.events import TraceWriter
    from agentmesh.state.memory import MemoryEngine, MemoryEntry


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'agentmesh' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
