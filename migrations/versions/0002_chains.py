"""Chains: variables of a trace, signals, timers of steps, calls that are child traces."""

from pathlib import Path

from alembic import op

revision = "0002_chains"
down_revision = "0001_first"


def upgrade() -> None:
    script = Path(__file__).parent.parent / "sql" / f"{revision}.sql"
    op.get_bind().connection.driver_connection.execute(script.read_text())


def downgrade() -> None:
    op.get_bind().connection.driver_connection.execute(
        "DROP INDEX mesh.steps_successor; CREATE UNIQUE INDEX steps_successor ON mesh.steps (trace_id, after_step_id, node,"
        " iteration) WHERE after_step_id IS NOT NULL AND status <> 'superseded';"
        "DROP TABLE mesh.signals; DROP INDEX mesh.steps_wake, mesh.calls_next, mesh.calls_owed, mesh.traces_held;"
        "ALTER TABLE mesh.calls DROP COLUMN limited, DROP COLUMN child_trace_id, DROP COLUMN compensate,"
        " DROP CONSTRAINT slot_mode_known,"
        " ADD CONSTRAINT slot_mode_known CHECK (slot_mode IN ('all', 'first'));"
        "ALTER TABLE mesh.steps DROP COLUMN state;"
        "CREATE OR REPLACE VIEW inv.traces AS SELECT id::text, tenant_id, context_id, parent_id::text, status, epoch,"
        " worker_id::text, permissions, created_at, rung_at, wake_at, waits_for, paused_at, budget_limit, budget_spent,"
        " budget_held FROM mesh.traces; ALTER TABLE mesh.agents DROP COLUMN paused_at, DROP COLUMN paused_by;"
        "DROP TABLE mesh.lanes, mesh.schedules; ALTER TABLE mesh.traces DROP COLUMN lane, DROP COLUMN admitted_at;"
        "ALTER TABLE mesh.traces DROP COLUMN state; ALTER TABLE mesh.workers DROP COLUMN stuck;"
        "ALTER TABLE mesh.attempts DROP COLUMN log; DROP TABLE mesh.exports; ALTER TABLE mesh.events DROP COLUMN xid;"
        "DROP TRIGGER events_audited ON mesh.events; DROP TRIGGER heads_whole ON mesh.audit_heads;"
        "DROP FUNCTION mesh.audit_event, mesh.audit_note, mesh.audit_seal, mesh.anchors_only_grow"
    )
