// Package agent is about vantages that are not nodes. Agent is rota's own: it fetches targets from a node, has them probed and reports
// what the prober holds, while Server is what a node offers such agents. Healthd lets NectGmbH's healthagents report to rota as they
// are, and a Relay hands on to the leader what they say; HealthdClient lets rota's agent feed an existing healthd. How targets are
// probed, who the leader is, and how a report becomes votes is left to others; so is the cluster's port, whose clients and verified
// identities are passed in.
package agent
