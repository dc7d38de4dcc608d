package rota

import (
	"fmt"
	"net/netip"
	"time"
)

// EndpointID names an endpoint: a service and an address.
type EndpointID struct {
	Service Name       `json:"service"`
	Address netip.Addr `json:"address"`
}

// String returns service/address, the form that commands take and show.
func (e EndpointID) String() string { return e.Service.Short() + "/" + e.Address.String() }

// Action is what a person said of an endpoint.
type Action string

// The actions, weakest first: a force beats maintenance beats drain beats the verdict.
const (
	ActionDrain       Action = "drain"       // no new clients; healthy as it may be
	ActionMaintenance Action = "maintenance" // expected to be broken
	ActionForceUp     Action = "force-up"
	ActionForceDown   Action = "force-down"
)

// ParseAction reads an action in words.
func ParseAction(s string) (Action, error) {
	switch a := Action(s); a {
	case ActionDrain, ActionMaintenance, ActionForceUp, ActionForceDown:
		return a, nil
	}
	return "", fmt.Errorf("unknown action %q: want drain, maintenance, force-up or force-down", s)
}

// Bounds of an override's life.
const (
	DefaultOverride = 24 * time.Hour
	MaxOverride     = 366 * 24 * time.Hour
)

// Override is what a person said of one endpoint. It holds until it expires or is lifted, through restarts and changes of leader.
type Override struct {
	Endpoint EndpointID `json:"endpoint"`
	Action   Action     `json:"action"`
	Author   string     `json:"author"`
	Reason   string     `json:"reason"`
	Set      time.Time  `json:"set"`
	Expires  time.Time  `json:"expires"`
}

// At reports whether the override still holds.
func (o *Override) At(now time.Time) bool { return o != nil && now.Before(o.Expires) }

// out reports whether the override takes the endpoint out of the answer.
func (o *Override) out() bool { return o != nil && o.Action != ActionForceUp }
