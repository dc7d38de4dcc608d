package config

import (
	"log/slog"
	"os"
	"time"

	"github.com/rota-dns/rota/internal/rota"
)

// Config is what one rota.yaml and the files it includes say, with every default filled in. It is immutable.
type Config struct {
	Node    Node
	Log     Log
	Metrics Metrics
	API     API
	Cluster Cluster

	DNS        *DNS // nil: rota answers no queries itself
	Keys       map[string]Key
	Publishers []Publisher // those that a service uses, sorted by name; rota.Embedded is not among them
	Idle       []Publisher // those that are defined and that nothing uses, sorted by name
	Ownership  Ownership

	NodesVote   bool         // nodes have a voice, not only agents
	Agents      []Agent      // accepted vantages that are no nodes, sorted by name
	Healthagent *Healthagent // nil: none
	Uplink      *Uplink      // nil: this node does not ask itself whether it is cut off

	// Spec has services in canonical names, sorted by name, and checks with every default filled in. Its vantages are this node and
	// the agents, sorted by name; with Raft the file does not know the other nodes, and a quorum that is a count may be larger.
	Spec rota.Spec

	// What checks, named ones that no service uses included, let this machine do; sorted, each once. It does neither for a check that
	// comes from elsewhere.
	Places   []rota.Place // secrets and certificates to read
	Commands [][]string   // to run, program and arguments

	Files    []string  // read to make this, the first being the one asked for: configuration, zone files, secrets
	Warnings []Problem // what is allowed and probably not meant
	Sources  Sources   // what was read, for Watch
}

// Node is this process.
type Node struct {
	Name    string // default: the host name
	Site    string // where it stands; default: Name
	DataDir string // default: $STATE_DIRECTORY, else rota-data in the working directory
}

// LogFormat is how log lines look.
type LogFormat string

// The formats of a log.
const (
	LogAuto     LogFormat = "auto" // journald under systemd, colour on a terminal, JSON elsewhere
	LogTerminal LogFormat = "terminal"
	LogJSON     LogFormat = "json"
	LogJournald LogFormat = "journald"
)

// Log says what is logged, how and where.
type Log struct {
	Level  slog.Level
	Format LogFormat
	File   string // empty: standard error
}

// Metrics says where metrics are read.
type Metrics struct {
	Path string // of the Prometheus text format on the API's listener
}

// Role is what the bearer of a token may do.
type Role string

// The roles, weakest first.
const (
	RoleAgent    Role = "agent" // register the host that the token is named after
	RoleViewer   Role = "viewer"
	RoleOperator Role = "operator"
	RoleAdmin    Role = "admin"
)

// API is the HTTP listener.
type API struct {
	Listen        string // host:port; empty: only the unix socket in the data directory
	CertFile      string // PEM; both or none
	KeyFile       string
	AnonymousRead bool // whoever connects may look
	Tokens        []Token
}

// Token lets its bearer in.
type Token struct {
	Name  string
	Role  Role
	Token Secret
}

// Cluster says how nodes agree. With Election "singleton", this node alone, everything else is empty.
type Cluster struct {
	Election  string   // "singleton" (default) or "raft"
	Listen    string   // host:port; default ":3648"
	Advertise string   // host:port that others reach this node at; empty: to be found from Listen, or the machine's only global address
	Join      []string // host:port of other nodes, in the order they were written, each once and none of them Advertise

	// PEM files, all or none. Empty: rota's own credentials in the data directory.
	CertFile, KeyFile, CAFile string
	Nodes                     []string // names of nodes in certificates of CAFile, sorted; empty without those files

	ID string // tells clusters of one CAFile apart; empty without those files

	RaftAdmin string // host:port on a loopback address, for raftadmin; empty: off
}

// The ways to elect.
const (
	Singleton = "singleton" // this node alone
	Raft      = "raft"
)

// Ownership says which records are rota's.
type Ownership struct {
	// Owner is who owns what is published, in fence records and the registry. Default: the node's name, and with raft the cluster's id,
	// which stands here as nothing. At most 128 bytes when URL-encoded.
	Owner    string
	Registry Registry
	Prefix   string // before the names of the registry's TXT records; default "_rota."
}

// Registry says how each RRset is marked as rota's.
type Registry string

// The registries.
const (
	RegistryNone Registry = "none" // not at all: a zone's fence record and the comparison before each write do
	RegistryTXT  Registry = "txt"  // by a TXT record beside it, as external-dns has them
)

// Agent is a vantage that is no node.
type Agent struct {
	Name string // as in its certificate: 1 to 64 letters, digits, and . _ -
	Site string // where it stands, at most 64 bytes; empty: where it says, else its name
}

// Healthagent is the listener for NectGmbH's healthagents. Its files are PEM.
type Healthagent struct {
	Listen       string // host:port
	CertFile     string
	KeyFile      string
	ClientCAFile string // who signs the agents' certificates
}

// Uplink tells a node that it is cut off: when fewer than Need of Checks are up, it abstains.
type Uplink struct {
	Checks []rota.Target // at least one, in the order they were written, each once; asked every second
	Need   int           // 1 to len(Checks)
}

// DNS is rota's own authoritative name server.
type DNS struct {
	Listen []string // host:port, for UDP and TCP each
	Zones  []Zone   // sorted by name
}

// Zone is a zone rota answers for. Its services are those of the Spec that name rota.Embedded and this zone.
type Zone struct {
	Name    rota.Name
	NS      []rota.Name // at least one
	MName   rota.Name   // default: the first of NS
	RName   rota.Name   // default: hostmaster under the zone
	Refresh uint32      // seconds, as all of these; default 7200
	Retry   uint32      // default 1800
	Expire  uint32      // default 1209600
	Minimum uint32      // how long "no such name" is kept (RFC 2308 §4); default 5 or the smallest service TTL, whichever is less
	TTL     uint32      // of the zone's own SOA and NS and of static records that say nothing; default 3600

	Records []rota.RRset // static records without the apex' SOA and NS, sorted by name and type, data in canonical form
}

// Key is a TSIG key.
type Key struct {
	Name      rota.Name
	Algorithm string // in canonical form, such as "hmac-sha256."
	Secret    Secret // base64
}

// Options are what a configuration is read with. The zero value is right for the command.
type Options struct {
	Env        func(string) (string, bool) // default os.LookupEnv
	HostName   string                      // default os.Hostname
	NoSecrets  bool                        // leave secrets unread: to judge a file on a machine that does not have them
	filesystem filesystem                  // default: the machine's
}

func (o Options) withDefaults() Options {
	if o.Env == nil {
		o.Env = os.LookupEnv
	}
	if o.HostName == "" {
		if name, err := os.Hostname(); err == nil {
			o.HostName = name
		}
	}
	if o.filesystem == nil {
		o.filesystem = machine{}
	}
	return o
}

// Load reads the configuration at path with all it includes. An error about the text is an *Errors that holds all of them;
// then there is no Config.
func Load(path string, o Options) (*Config, error) {
	l := newLoader(o)
	text, err := l.read(path, maxConfig)
	if err != nil {
		l.problem(Problem{File: path, Message: err.Error()})
		return nil, l.failed()
	}
	return l.load(path, text)
}

// Parse is Load for text that was read already; name says where it came from, and relative paths in it start at name's directory.
func Parse(name string, text []byte, o Options) (*Config, error) {
	l := newLoader(o)
	l.saw(name, text)
	return l.load(name, text)
}

// day is the longest unit a duration knows.
const day = 24 * time.Hour
