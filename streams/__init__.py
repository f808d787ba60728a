"""How cases move and where they rest: intake, the Faust stages, retries, the sink, the queries.

Everything that talks to Kafka on behalf of a case lives here.
"""
