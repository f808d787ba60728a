"""Topic lag: where cases wait, for how long, and who should be reading."""

from __future__ import annotations

from dashboard import JOB, Dashboard, variable
from panels import Query, above, bars, series, stat, states, table

J = 'job=~"$job"'
G = f'{J},group_id=~"$group",topic_name=~"$topic"'
LAG = "goldstream_kafka_consumer_group_topic_lag"
GROUP = variable("group", "Group", "Consumer groups of the factory.", f"{LAG}{{{J}}}", "group_id")
TOPIC = variable("topic", "Topic", "Topics that these groups read.", f'{LAG}{{{J},group_id=~"$group"}}', "topic_name")
TAKES = {"0": ("takes cases", "green"), "1": ("held", "orange")}


def lag() -> Dashboard:
    """Returns the dashboard."""
    made = Dashboard(
        "goldstream-lag",
        "Goldstream / Topic lag",
        "Where cases wait, for how long, and who should be reading. Judge by age and trend: raw lag saw-tooths.",
        [JOB, GROUP, TOPIC],
    )
    age = f'goldstream_stage_oldest_record_age_seconds{{{J},stage!="retries"}}'
    made.row(
        "Now",
        stat(
            "Oldest record waiting",
            "Age of the oldest record before any stage; retries wait on purpose and are left out.",
            Query(f"max({age})"),
            "s",
            above(300, 900),
        ),
        stat(
            "Records waiting",
            "All stages. A large backlog that shrinks needs nobody.",
            Query(f"sum(goldstream_stage_lag{{{J}}})"),
        ),
        stat(
            "Growing by",
            "Records a second by which all backlogs grow; below 0 they shrink.",
            Query(f"sum(goldstream_stage_lag_trend{{{J}}})"),
            "cps",
            above(0.1, 5),
        ),
        stat(
            "Groups without a reader",
            "Consumer groups of which no member holds a partition.",
            Query(f'count(goldstream_kafka_consumer_group_members{{{J},group_id=~"$group"}} == 0) or vector(0)'),
            steps=above(1, 1),
        ),
        stat(
            "Stages held",
            "Stages that take no cases now: an operator's pause, their models, Kafka, or too much under way.",
            Query(f"sum(max by (stage) (goldstream_stage_held{{{J}}}))"),
            steps=above(1, 3),
        ),
        stat(
            "Exporter",
            "Lag, gold set and training as read by goldstream exporter; blind: one of them cannot be read.",
            Query(f"min(goldstream_exporter_up{{{J}}})"),
            values={"1": ("reads", "green"), "0": ("blind", "red")},
        ),
    )
    made.row(
        "By stage",
        series(
            "Age of the oldest waiting record",
            "Alerts at 900 s (StageStuck). A line that climbs by a second each second is a partition nobody reads.",
            Query(f"max by (stage) ({age})", "{{stage}}"),
            unit="s",
            steps=above(300, 900),
            size=(12, 8),
        ),
        series(
            "Records waiting",
            "Before each stage, over all topics it reads.",
            Query(f"sum by (stage) (goldstream_stage_lag{{{J}}})", "{{stage}}"),
            size=(12, 8),
        ),
        series(
            "Trend",
            "Records a second by which the backlog of a stage grows, between two readings.",
            Query(f"sum by (stage) (goldstream_stage_lag_trend{{{J}}})", "{{stage}}"),
            unit="cps",
            lowest=None,
            size=(8, 7),
        ),
        series(
            "Cases taken",
            "By stage, all workers; those that came again too.",
            Query(f"sum by (stage) (rate(goldstream_stage_taken_total{{{J}}}[$__rate_interval]))", "{{stage}}"),
            unit="cps",
            size=(8, 7),
        ),
        series(
            "Cases in flight",
            "Being worked on now, all workers. At worker.cases_in_flight a stage is full.",
            Query(f"sum by (stage) (goldstream_stage_in_flight{{{J}}})", "{{stage}}"),
            size=(8, 7),
        ),
        states(
            "Stages held",
            "When a stage took no cases.",
            Query(f"max by (stage) (goldstream_stage_held{{{J}}})", "{{stage}}"),
            values=TAKES,
            size=(8, 7),
        ),
        states(
            "Held by",
            "Why: models (down, limited or over budget), pause, refused (by Kafka) or pending (too much"
            " waits for Kafka's confirmation).",
            Query(f"max by (why) (goldstream_stage_held{{{J}}})", "{{why}}"),
            values={"0": ("no", "green"), "1": ("yes", "orange")},
            size=(8, 7),
        ),
        states(
            "Paused by an operator",
            "goldstream pause STAGE; alerts on age leave these out.",
            Query(f"max by (stage) (goldstream_stage_paused{{{J}}})", "{{stage}}"),
            values={"0": ("runs", "green"), "1": ("paused", "blue")},
            size=(8, 7),
        ),
    )
    made.row(
        "By group and topic",
        table(
            "Groups and topics",
            "As kafka-consumer-groups shows them, without the partitions.",
            {
                "lag": f"sum by (group_id, topic_name) ({LAG}{{{G}}})",
                "committed": f"sum by (group_id, topic_name) (goldstream_kafka_consumer_group_topic_offset_sum{{{G}}})",
                "members": f"sum by (group_id, topic_name) (goldstream_kafka_consumer_group_topic_members{{{G}}})",
                "assigned": "sum by (group_id, topic_name) "
                f"(goldstream_kafka_consumer_group_topic_assigned_partitions{{{G}}})",
            },
            {
                "group_id": "Group",
                "topic_name": "Topic",
                "lag": "Lag",
                "committed": "Committed",
                "members": "Members",
                "assigned": "Partitions held",
            },
            size=(24, 9),
        ),
        series(
            "Lag by topic",
            "All partitions of a topic.",
            Query(f"sum by (group_id, topic_name) ({LAG}{{{G}}})", "{{group_id}} · {{topic_name}}"),
            size=(12, 8),
        ),
        series(
            "Lag by partition",
            "The 20 largest. One partition far above the others is a stuck member or a hot key.",
            Query(
                f"topk(20, goldstream_kafka_consumer_group_topic_partition_lag{{{G}}})",
                "{{topic_name}} {{partition_id}}",
            ),
            size=(12, 8),
        ),
        series(
            "Records produced",
            "By topic, from its high water mark.",
            Query(
                "sum by (topic_name) (deriv(goldstream_kafka_topic_high_water_mark_sum"
                f'{{{J},topic_name=~"$topic"}}[$__rate_interval]))',
                "{{topic_name}}",
            ),
            unit="cps",
        ),
        series(
            "Records committed",
            "By group and topic, from its committed offsets.",
            Query(
                "sum by (group_id, topic_name) (deriv(goldstream_kafka_consumer_group_topic_offset_sum"
                f"{{{G}}}[$__rate_interval]))",
                "{{group_id}} · {{topic_name}}",
            ),
            unit="cps",
        ),
        bars(
            "Fullest partition against the mean",
            "Of a topic's high water marks; 1: evenly spread. Ours are keyed by"
            " case id; a source topic is as its producer keys it.",
            Query(
                "max by (topic_name) (goldstream_kafka_topic_partition_high_water_mark"
                f'{{{J},topic_name=~"$topic"}}) / (avg by (topic_name) '
                f'(goldstream_kafka_topic_partition_high_water_mark{{{J},topic_name=~"$topic"}}) > 0)',
                "{{topic_name}}",
            ),
            steps=above(2, 4),
        ),
    )
    made.row(
        "Retries, exporter and processes",
        series(
            "Cases waiting for another try",
            "Held by goldstream retries, by topic.",
            Query(f"sum by (topic) (goldstream_retries_waiting{{{J}}})", "{{topic}}"),
            size=(8, 7),
        ),
        series(
            "Cases sent back",
            "By the topic they waited on.",
            Query(f"sum by (topic) (rate(goldstream_retries_returned_total{{{J}}}[$__rate_interval]))", "{{topic}}"),
            unit="cps",
            size=(8, 7),
        ),
        series(
            "Age of the exporter's readings",
            "The gold set is read only where something has landed since, at most every 15 s.",
            Query(f"time() - goldstream_exporter_reading_timestamp_seconds{{{J}}}", "{{reading}}"),
            Query(f"goldstream_exporter_reading_seconds{{{J}}}", "{{reading}} takes"),
            unit="s",
            steps=above(900),
            size=(8, 7),
        ),
        states(
            "Processes",
            "Whether Prometheus reaches each. A file left in <state>/run by a process that was taken"
            " away for good shows as down.",
            Query(f"min by (process, instance) (up{{{J}}})", "{{process}} {{instance}}"),
            values={"1": ("up", "green"), "0": ("down", "red")},
        ),
        series(
            "CPU",
            "Cores.",
            Query(f"sum by (process) (rate(process_cpu_seconds_total{{{J}}}[$__rate_interval]))", "{{process}}"),
            unit="short",
        ),
        series(
            "Memory",
            "Resident.",
            Query(f"sum by (process) (process_resident_memory_bytes{{{J}}})", "{{process}}"),
            unit="bytes",
        ),
    )
    return made
