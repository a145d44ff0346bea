-- I1-I12: each query returns the ids that break it; no rows = holds. They read the views of schema `inv` (search_path).
-- `:slack` is an interval of three leases. I2 is for the quiet state (and the open-work part of I7); all others hold
-- at every instant. A paused trace is meant to stand still; so is a row whose trace is paused.
-- I1 Nothing accepted is lost or doubled
SELECT e.id FROM envelopes e LEFT JOIN traces t ON t.id = e.trace_id AND t.tenant_id = e.tenant_id WHERE t.id IS NULL
UNION ALL SELECT t.id FROM traces t WHERE (SELECT count(*) FROM envelopes e WHERE e.trace_id = t.id) <> 1
UNION ALL SELECT min(id) FROM envelopes WHERE idem_key IS NOT NULL GROUP BY tenant_id, idem_key HAVING count(*) > 1;
-- I2 Nothing is stuck (`:slack` = 3 × lease)
WITH w AS (SELECT id, status, worker_id, rung_at, created_at, wake_at, paused_at FROM traces
   UNION ALL SELECT id, status, worker_id, rung_at, created_at, wake_at, paused_at FROM steps
   UNION ALL SELECT id, status, worker_id, rung_at, created_at, wake_at, paused_at FROM calls)
SELECT w.id FROM w LEFT JOIN workers k ON k.id = w.worker_id AND k.beat_at > now() - :slack
 WHERE w.status = 'running' AND k.id IS NULL AND w.worker_id IS NOT NULL
    OR w.status IN ('ready','queued','joined') AND w.paused_at IS NULL AND greatest(coalesce(rung_at, created_at), wake_at) < now() - :slack
UNION ALL SELECT id FROM traces WHERE status = 'waiting' AND wake_at IS NULL AND waits_for IS NULL
UNION ALL SELECT t.id FROM traces t WHERE t.status = 'running' AND t.worker_id IS NULL
   AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.trace_id = t.id AND s.status IN ('ready','running','waiting','joined'));
-- I3 One recorded result per call
SELECT c.id FROM calls c LEFT JOIN attempts a ON a.call_id = c.id GROUP BY c.id, c.status
HAVING count(*) FILTER (WHERE a.outcome = 'won') <> (c.status = 'done')::int;
-- I4 Fence: epochs grow, holders never overlap, the winner is the last holder
SELECT a.call_id FROM attempts a JOIN calls c ON c.id = a.call_id
 WHERE a.outcome = 'won' AND (a.epoch, a.n) <> (c.epoch, (SELECT max(n) FROM attempts WHERE call_id = c.id))
UNION ALL SELECT call_id FROM (SELECT *, lag(epoch) OVER o AS e0, lag(ended_at, 1, '-infinity') OVER o AS t0
   FROM attempts WINDOW o AS (PARTITION BY call_id ORDER BY n)) x
 WHERE epoch <= e0 OR t0 IS NULL OR started_at < t0;
-- I5 A join fires once, not early; one successor per step
SELECT s.id FROM steps s WHERE s.kind = 'tools' AND s.status = 'waiting' AND s.require = 'all' AND s.pending <>
   (SELECT count(DISTINCT slot) FROM calls c WHERE c.step_id = s.id AND c.status IN ('ready','running','held'))
UNION ALL SELECT s.id FROM steps s LEFT JOIN events e ON e.step_id = s.id AND e.name = 'CALLBACK_RESULT'
 WHERE s.kind = 'tools' GROUP BY s.id, s.status, s.pending HAVING count(e.seq) > 1 OR s.status = 'done' AND (count(e.seq) = 0 OR s.pending <> 0)
UNION ALL SELECT min(id) FROM steps WHERE after_step_id IS NOT NULL AND status <> 'superseded'
 GROUP BY trace_id, after_step_id, node, iteration HAVING count(*) > 1;
-- I6 A tool runs again only where promised, under the same key
SELECT call_id FROM attempts GROUP BY call_id HAVING count(DISTINCT idem_key) > 1
UNION ALL SELECT min(a.call_id) FROM attempts a JOIN calls c ON c.id = a.call_id
 GROUP BY c.tenant_id, c.tool, a.idem_key HAVING count(DISTINCT a.call_id) > 1
UNION ALL SELECT call_id FROM (SELECT *, lag(outcome) OVER o AS o0, lag(n, 1, 0) OVER o AS n0
   FROM attempts WINDOW o AS (PARTITION BY call_id ORDER BY n)) x
 WHERE n <> n0 + 1 OR n > 1 AND (o0 IS NULL OR o0 NOT IN ('failed','timeout','lost','released','stale'))
UNION ALL SELECT c.id FROM calls c JOIN attempts a ON a.call_id = c.id GROUP BY c.id, c.effect, c.max_attempts
 HAVING c.effect = 'once' AND count(*) FILTER (WHERE kind <> 'person' AND outcome IS DISTINCT FROM 'released') > 1 OR count(*) FILTER (WHERE a.outcome IN ('failed','timeout')) > c.max_attempts;
-- I7 History is gap-free, ends once, agrees with the rows
SELECT trace_id FROM events GROUP BY trace_id HAVING min(seq) <> 1 OR max(seq) <> count(*) OR count(DISTINCT seq) <> count(*)
UNION ALL SELECT t.id FROM traces t LEFT JOIN LATERAL
   (SELECT name FROM events e WHERE e.trace_id = t.id ORDER BY seq DESC LIMIT 1) l ON true
 WHERE l.name IS NULL OR coalesce(CASE l.name WHEN 'EXEC_DONE' THEN 'done' WHEN 'EXEC_FAIL' THEN 'failed'
   WHEN 'EXEC_CANCEL' THEN 'cancelled' END, 'open') <> CASE WHEN t.status IN ('done','failed','cancelled') THEN t.status ELSE 'open' END
UNION ALL SELECT t.id FROM traces t WHERE t.status IN ('done','failed','cancelled') AND (
   EXISTS (SELECT 1 FROM steps s WHERE s.trace_id = t.id AND s.status IN ('ready','running','waiting','joined'))
   OR EXISTS (SELECT 1 FROM calls c WHERE c.trace_id = t.id AND c.status IN ('ready','running','held')));
-- I8 A callback effect happens once; memory versions have no hole
SELECT step_id FROM effects GROUP BY step_id, name HAVING count(*) > 1
UNION ALL SELECT s.id FROM steps s WHERE s.status = 'done' AND EXISTS (SELECT unnest(s.callbacks)
   EXCEPT SELECT f.name FROM effects f WHERE f.step_id = s.id)
UNION ALL SELECT context_id FROM memory GROUP BY tenant_id, context_id, key
 HAVING max(version) - min(version) + 1 <> count(*) OR count(DISTINCT version) <> count(*); -- the oldest may be forgotten
-- I9 Tenants are closed
SELECT s.id FROM steps s JOIN traces t ON t.id = s.trace_id WHERE s.tenant_id <> t.tenant_id
UNION ALL SELECT c.id FROM calls c JOIN steps s ON s.id = c.step_id WHERE (c.tenant_id, c.trace_id) <> (s.tenant_id, s.trace_id)
UNION ALL SELECT t.id FROM traces t LEFT JOIN contexts x ON x.id = t.context_id AND x.tenant_id = t.tenant_id WHERE x.id IS NULL
   AND EXISTS (SELECT 1 FROM events e WHERE e.trace_id = t.id AND e.name = 'ACP_RECEIVE')
UNION ALL SELECT k.id FROM traces k JOIN traces p ON p.id = k.parent_id WHERE k.tenant_id <> p.tenant_id
UNION ALL SELECT e.trace_id FROM events e JOIN traces t ON t.id = e.trace_id WHERE e.tenant_id <> t.tenant_id
UNION ALL SELECT m.context_id FROM memory m LEFT JOIN contexts x ON x.id = m.context_id AND x.tenant_id = m.tenant_id WHERE x.id IS NULL
UNION ALL SELECT f.step_id FROM effects f JOIN traces t ON t.id = f.trace_id WHERE f.tenant_id <> t.tenant_id;
-- I10 Authority only shrinks
SELECT c.id FROM calls c JOIN traces t ON t.id = c.trace_id
 WHERE NOT c.needs <@ t.permissions AND EXISTS (SELECT 1 FROM attempts a WHERE a.call_id = c.id)
UNION ALL SELECT k.id FROM traces k JOIN traces p ON p.id = k.parent_id WHERE NOT k.permissions <@ p.permissions;
-- I11 The audit chain is whole and meets its anchors
SELECT tenant_id || ':' || seq FROM (SELECT *, lag(hash) OVER o AS h0, lag(seq, 1, 0) OVER o AS s0
   FROM audit WINDOW o AS (PARTITION BY tenant_id ORDER BY seq)) x
 WHERE seq <> s0 + 1 OR prev IS DISTINCT FROM coalesce(h0, sha256(convert_to(tenant_id, 'UTF8')))
    OR hash IS DISTINCT FROM sha256(prev || convert_to(body, 'UTF8'))
UNION ALL SELECT h.tenant_id || ':' || h.seq FROM audit_heads h LEFT JOIN audit a USING (tenant_id, seq)
 WHERE a.hash IS DISTINCT FROM h.hash;
-- I12 Budgets are never overrun and always add up
SELECT t.id FROM traces t LEFT JOIN ledger l ON l.trace_id = t.id
GROUP BY t.id, t.status, t.budget_limit, t.budget_spent, t.budget_held HAVING budget_spent + budget_held > budget_limit OR least(budget_spent, budget_held) < 0
    OR budget_spent <> coalesce(sum(amount) FILTER (WHERE kind = 'spend'), 0)
    OR budget_held <> coalesce(sum(CASE kind WHEN 'hold' THEN amount WHEN 'release' THEN -amount END), 0)
    OR status IN ('done','failed','cancelled') AND budget_held <> 0;
