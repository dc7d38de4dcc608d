package config

import (
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Publisher keeps records true in one DNS.
type Publisher struct {
	Name string
	Type string // the word under type, such as "rfc2136"

	DryRun     bool          // nothing is written
	MinGap     time.Duration // between two writes to one zone
	ReadEvery  time.Duration // between looks at a zone that is as it should be
	MaxRecords int           // of one name and type; no service that names it has more
	MinTTL     uint32        // seconds; what is wanted with less is published with this
	Zones      []rota.Name   // that it keeps, sorted; empty: found by asking
	Proof      Proof

	// One of these is set, which one follows from Type.
	RFC2136      *RFC2136
	NSUpdate     *NSUpdate // nsupdate and knsupdate
	PowerDNS     *PowerDNS
	AutoDNS      *AutoDNS
	Dynu         *Dynu
	DigitalOcean *DigitalOcean
	Cloudflare   *Cloudflare
	Route53      *Route53
	DeSEC        *DeSEC
	Webhook      *Webhook
	Exec         *Exec
	ExternalDNS  *ExternalDNS
	LibDNS       *LibDNS
	ZoneFile     *ZoneFile
	Mock         *Mock // mock and mockjson
}

// Proof says how it is proven from outside that what was written is answered.
type Proof struct {
	Off       bool          // not at all; then the rest is empty
	Servers   []string      // host:port; empty: every address of every name server of the zone
	Resolvers []string      // host:port, asked where the name servers are; empty: the machine's
	Within    time.Duration // after this it is an alarm
	Every     time.Duration // between looks at a zone in which nothing changes
}

// Transport is what carries an UPDATE.
type Transport string

// The transports. TransportAuto is UDP, and TCP for what does not fit or was truncated.
const (
	TransportAuto Transport = "auto"
	TransportUDP  Transport = "udp"
	TransportTCP  Transport = "tcp"
)

// RFC2136 is a name server that takes UPDATE messages.
type RFC2136 struct {
	Servers    []string // host:port, at least one; tried in order
	Keys       []Key    // the one that signs, and an older one for servers that do not know it yet; empty: unsigned
	PlainReads bool     // queries are not signed
	Transport  Transport
	NoTransfer bool // zones are not read by AXFR
}

// NSUpdate is a name server that BIND's nsupdate or Knot's knsupdate sends UPDATE messages to. It is read by DNS.
type NSUpdate struct {
	Command    []string // an absolute path or the program's name, and arguments
	Servers    []string // host:port, at least one; tried in order
	Keys       []Key    // as RFC2136 has them
	PlainReads bool     // queries are not signed
	Timeout    time.Duration
}

// PowerDNS is an authoritative server with its HTTP API.
type PowerDNS struct {
	URL      string // without the path of the API
	Token    Secret
	ServerID string // default "localhost"
}

// AutoDNS is InterNetX' Domainrobot API.
type AutoDNS struct {
	URL      string
	User     Secret
	Password Secret
	Context  int // default 4
}

// Dynu is Dynu's API.
type Dynu struct {
	URL   string
	Token Secret
}

// DigitalOcean is DigitalOcean's API.
type DigitalOcean struct {
	URL   string
	Token Secret
}

// Proxied says what becomes of Cloudflare's proxying of addresses.
type Proxied string

// What becomes of it: records that are there stay as they are, and new ones are as others of their name, proxied, or not.
const (
	ProxiedKeep Proxied = "keep"
	ProxiedOn   Proxied = "on"
	ProxiedOff  Proxied = "off"
)

// Cloudflare is Cloudflare's API.
type Cloudflare struct {
	URL     string
	Token   Secret
	Proxied Proxied
}

// Route53 is Amazon's DNS. Credentials are AccessKey and SecretKey, else those of Profile, else the environment's; with Role it is
// taken on by them.
type Route53 struct {
	URL       string // empty: that of the region
	Region    string // empty: the environment's, else "us-east-1"
	Role      string // ARN; empty: none
	Profile   string
	AccessKey Secret
	SecretKey Secret
	ZoneID    string // of the only hosted zone that is written; empty: found by name
	Private   bool   // of zones that exist both public and private, the private one is meant
	Wait      bool   // a change is done when all servers have it
}

// DeSEC is deSEC's API.
type DeSEC struct {
	URL   string
	Token Secret
}

// Webhook is somebody who is told by signed JSON over HTTP.
type Webhook struct {
	URL     string
	Secret  Secret // signs what is sent; at least 16 bytes
	Signed  bool   // replies without a signature are not believed
	Timeout time.Duration
}

// ExecMode is how a command is told what to do.
type ExecMode string

// The modes. ExecSimple runs it once for each record, told by its environment, and reads by DNS.
const (
	ExecJSON   ExecMode = "json" // on its standard input; it is asked what the DNS says, too
	ExecSimple ExecMode = "simple"
)

// Exec is a command.
type Exec struct {
	Command []string // an absolute path or the program's name, and arguments
	Mode    ExecMode
	Timeout time.Duration // of one run
	Servers []string      // host:port, for ExecSimple: asked what the DNS says
}

// ExternalDNS is a provider that speaks external-dns' webhook protocol.
type ExternalDNS struct {
	URL     string
	Timeout time.Duration
}

// LibDNS is a provider of the libdns project that is compiled in.
type LibDNS struct {
	Provider string
	Settings Secret // JSON, for the provider
}

// ZoneFile is a zone file that a name server reads.
type ZoneFile struct {
	Path    string
	Reload  []string      // an absolute path or the program's name, and arguments; empty: nothing is run
	Timeout time.Duration // of Reload
}

// Mock is no DNS at all: zones in memory or in a file.
type Mock struct {
	Zones string // path of a list of zones to begin with
	State string // path of what was written; empty: kept in memory
}
