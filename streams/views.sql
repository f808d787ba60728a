-- The gold set as views, for any DuckDB client (2.0 or later). From the DuckDB shell:
--
--     SET VARIABLE gold = '/path/to/.goldstream/gold';
--     .read views.sql
--
-- Run it once per session: the views ask the variables below at every query, and so see new rows as the sink writes
-- them, and the newest manifest as compaction publishes it. Without the first line the gold set is .goldstream/gold
-- below the working directory. The views need landing/p=schema/columns.parquet, a first manifest and
-- forgotten/keys.json, which the sink, `goldstream gold stats` and every other reading command put there.
--
-- A case has one row in outcomes. Redriven cases have a newer row of a higher epoch, which supersedes.

SET VARIABLE gold = coalesce(getvariable('gold'), '.goldstream/gold');
-- Making a view reads every footer it can reach, so while they are made they reach only the empty file.
SET VARIABLE columns = getvariable('gold') || '/landing/p=schema/*.parquet';
SET VARIABLE landing = getvariable('columns');
SET VARIABLE compacted = getvariable('columns');

-- The newest manifest: the compacted files, and of each partition the offset from which on landing files count.
CREATE OR REPLACE VIEW manifest AS
SELECT * FROM read_json(
    getvariable('gold') || '/manifests/**',
    columns = {number: 'BIGINT', created_ms: 'BIGINT', watermark: 'MAP(VARCHAR, BIGINT)',
               files: 'STRUCT(name VARCHAR, "rows" BIGINT, bytes BIGINT, sha256 VARCHAR, facts VARCHAR)[]'})
ORDER BY number DESC LIMIT 1;

-- Every row on disk, and so the forgotten ones until the next compaction. Only the audit asks it.
--
-- One query sees one manifest: the folder of manifests is listed first, since `newest` is named first, and the files
-- that it names are there when theirs are listed. What compaction has superseded is a symbolic link for a grace
-- period before it goes: `**` does not list these, and a query that has listed the file before can still open it. One
-- that is slower than that fails, and never counts a row twice or not at all.
CREATE OR REPLACE VIEW stored AS
WITH newest AS MATERIALIZED (FROM manifest),
named AS (
    SELECT coalesce(found.file, error('compacted file ' || wanted.name || ' is gone: run the query again')) AS file
    FROM (SELECT unnest(files).name AS name FROM newest) AS wanted
    LEFT JOIN glob(getvariable('compacted')) AS found ON parse_filename(found.file) = parse_filename(wanted.name)
        AND ends_with(found.file, wanted.name)
),
ends AS (SELECT unnest(map_keys(watermark))::INT AS part, unnest(map_values(watermark)) AS watermark FROM newest),
starts AS (
    SELECT parse_filename(file)[1:5]::INT AS part, parse_filename(file)[7:26]::BIGINT AS start
    FROM glob(getvariable('landing'))
    WHERE regexp_matches(file, '/p=\d{5}/\d{5}-\d{20}\.parquet$')
),
superseded AS (
    SELECT part, CASE WHEN min(start) FILTER (start >= watermark) > watermark
        THEN error('landing files of partition ' || part || ' are gone: run the query again') ELSE watermark END AS below
    FROM ends LEFT JOIN starts USING (part)
    GROUP BY part, watermark
)
SELECT 0::INT AS schema_version FROM newest WHERE false
UNION ALL BY NAME
SELECT * FROM read_parquet(
    [getvariable('columns'), getvariable('compacted')], union_by_name = true, hive_partitioning = false,
    allow_empty = true)
WHERE filename IN (SELECT file FROM named)
UNION ALL BY NAME
SELECT landing.* FROM read_parquet(
    [getvariable('columns'), getvariable('landing')], union_by_name = true, hive_partitioning = false,
    allow_empty = true) AS landing
ANTI JOIN superseded  -- by the name of the row's file: of what was listed once, nothing is left out by listing again
  ON TRY_CAST(parse_filename(landing.filename)[1:5] AS INT) = superseded.part
 AND TRY_CAST(parse_filename(landing.filename)[7:26] AS BIGINT) < superseded.below
WHERE regexp_matches(landing.filename, '/p=\d{5}/\d{5}-\d{20}\.parquet$');

-- What is forgotten: keyed hashes of users, traces, sessions and cases, and the places of the rows that means.
CREATE OR REPLACE VIEW forgotten AS
SELECT kind, "key", CASE WHEN at_ms > 0 THEN make_timestamp(at_ms * 1000) END AS "at",
       make_timestamp(coalesce(until_ms, 253402300799000) * 1000) AS "until", "partition", "offset"
FROM (
    SELECT unnest(from_json(content::JSON -> 'rows', '[{"kind": "VARCHAR", "key": "VARCHAR", "at_ms": "BIGINT",
        "until_ms": "BIGINT", "partition": "INTEGER", "offset": "BIGINT"}]'), recursive := true)
    FROM read_text(getvariable('gold') || '/forgotten/keys.json')  -- opened once: it may be replaced at any time
);

-- Every row ever landed that nobody has forgotten, superseded ones too.
CREATE OR REPLACE VIEW landed AS
SELECT stored.*
FROM stored
ANTI JOIN (SELECT "partition", "offset" FROM forgotten WHERE kind = 'row') AS gone
  ON stored.kafka_partition = gone."partition" AND stored.kafka_offset = gone."offset"
WHERE stored.reason IS DISTINCT FROM 'forgotten';

-- One row per case: that of its highest epoch. Few cases are redriven, so only their ids are held in memory.
CREATE OR REPLACE VIEW outcomes AS
WITH redriven AS (SELECT case_id, max(epoch) AS epoch FROM landed WHERE epoch > 0 GROUP BY case_id)
SELECT landed.*
FROM redriven RIGHT JOIN landed ON landed.case_id = redriven.case_id  -- in this order: no later row is looked for
WHERE landed.epoch = coalesce(redriven.epoch, 0);

CREATE OR REPLACE VIEW gold AS SELECT * FROM outcomes WHERE outcome = 'gold';
CREATE OR REPLACE VIEW unresolved AS SELECT * FROM outcomes WHERE outcome = 'unresolved';
CREATE OR REPLACE VIEW dead AS SELECT * FROM outcomes WHERE outcome = 'dead';
CREATE OR REPLACE VIEW holdout AS SELECT * FROM outcomes WHERE outcome = 'holdout';

-- One row per expert decision that stands: what the expert said, and what the judge had said.
CREATE OR REPLACE VIEW reviews AS
SELECT case_id, task, epoch, outcome, review, reviewer, review_reason, review_rules, review_sampled, reviewed_at,
       judge_passed, judge_name, judge_rules, review = 'accept' AS expert_passed
FROM outcomes
WHERE review IS NOT NULL;

-- Training pairs. A: prompt -> answer. B: prompt -> strategy, answer; only where failed rounds taught one.
CREATE OR REPLACE VIEW rgt_pairs AS
SELECT case_id, task, split, dt, 'A' AS pair, messages, prompt, NULL::VARCHAR AS strategy, answer, corrected, ended_at
FROM gold
WHERE answer IS NOT NULL
UNION ALL BY NAME
SELECT case_id, task, split, dt, 'B' AS pair, messages, prompt,
       'Mistake: ' || strategy_mistake || chr(10) || 'Guardrail: ' || strategy_guardrail AS strategy,
       answer, corrected, ended_at
FROM gold
WHERE answer IS NOT NULL AND strategy_guardrail <> '';

-- One row per attempt, with its verdict.
CREATE OR REPLACE VIEW attempts AS
SELECT case_id, task, split, dt, outcome, attempt.*
FROM (SELECT case_id, task, split, dt, outcome, unnest(attempts) AS attempt FROM outcomes);

-- How often an attempt passes, by round and by who made it.
CREATE OR REPLACE VIEW acceptance AS
SELECT task, split, round, source, model, adapter,
       count(*) AS judged,
       count(*) FILTER (passed) AS accepted,
       count(*) FILTER (passed) / count(*) AS pass_rate,
       avg(score / nullif(max_score, 0)) AS mean_score
FROM attempts
WHERE passed IS NOT NULL
GROUP BY ALL
ORDER BY ALL;

-- Which rules attempts break, by round and by who made them.
CREATE OR REPLACE VIEW violations AS
SELECT task, split, violation.rule AS rule, violation.severity AS severity, round, source, model, adapter,
       count(*) AS violations,
       count(DISTINCT case_id) AS cases
FROM (SELECT case_id, task, split, round, source, model, adapter, unnest(violations) AS violation FROM attempts)
GROUP BY ALL
ORDER BY ALL;

-- What cases cost, by day and by how they ended. Calls repeated after a crash are not in it.
CREATE OR REPLACE VIEW cost AS
SELECT task, dt, outcome,
       count(*) AS cases,
       sum(calls) AS calls,
       sum(prompt_tokens) AS prompt_tokens,
       sum(completion_tokens) AS completion_tokens,
       sum(cost_usd) AS cost_usd,
       sum(cost_usd) / count(*) AS cost_per_case_usd,
       sum(model_s) AS model_s
FROM outcomes
GROUP BY ALL
ORDER BY ALL;

SET VARIABLE landing = getvariable('gold') || '/landing/p=*/**';
SET VARIABLE compacted = getvariable('gold') || '/data/*/*/*/**';
