package rota

import (
	"fmt"
	"net/netip"
	"time"
)

// RegisterTemplate says what a host that announces itself may claim: from its name follow the service it belongs to, the record of its
// own and the pointers back to that.
type RegisterTemplate struct {
	Name        string         `json:"name"`                  // of the block; hosts name it when there are several
	HostName    string         `json:"host_name"`             // pattern of host names, as ParseHostPattern reads it
	ServiceName string         `json:"service_name"`          // template of the service's name; empty: hosts join no service
	HostRecord  string         `json:"host_record,omitempty"` // template of the host's own name; empty: it has none
	Reverse     []Reverse      `json:"reverse,omitempty"`     // where its addresses point back; needs a HostRecord
	ExpireAfter time.Duration  `json:"expire_after_ns"`       // since it was last renewed; 0: never
	Networks    []netip.Prefix `json:"networks,omitempty"`    // of addresses that may be claimed; empty: all that can be published

	Service  Service  `json:"service"`  // what a service made of it has, but for Name and Endpoints; its TTL is also that of the other records
	Endpoint Endpoint `json:"endpoint"` // what each of its endpoints has, but for Address and Monitor

	HostPublish []string `json:"host_publish,omitempty"` // publishers of the host's own record, as in Service
	HostZone    Name     `json:"host_zone,omitempty"`    // of the host's own record; empty: found by the publisher
}

// Reverse is where pointers of addresses are kept. Of several, the one with the longest zone that an address belongs to takes it.
type Reverse struct {
	Zone    Name     `json:"zone,omitempty"` // below in-addr.arpa or ip6.arpa, RFC 2317 zones too; empty: every address, in a zone that the publisher finds
	Publish []string `json:"publish"`        // publishers by name, as in Service
}

// Publishable returns nil for an address that hosts elsewhere can reach a host by.
func Publishable(a netip.Addr) error {
	switch {
	case !a.IsValid() || a.Is4In6() || a.Zone() != "":
		return fmt.Errorf("address %v cannot be published", a)
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == broadcast:
		return fmt.Errorf("address %v reaches no host from elsewhere: give another one", a)
	}
	return nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
