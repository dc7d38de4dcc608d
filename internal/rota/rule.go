package rota

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Measure is what a rule of a node_exporter check looks at.
type Measure uint8

// The measures.
const (
	MeasureCPU    Measure = iota // percent busy, the mean of all cores
	MeasureMemory                // memory that is free, in percent of all or in bytes
	MeasureLoad                  // load average of one minute
	MeasureNet                   // percent of a link's speed, of receiving and of sending each
	MeasureMetric                // a metric as it stands
)

// Units of a limit, beside those of sizes.
const (
	UnitNone    = ""
	UnitPercent = "%"
	UnitCores   = "cores" // times the number of cores
)

// sizes are the units of sizes, in bytes.
var sizes = map[string]float64{
	"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// LabelMatch is what a label of a series has to be, or must not be. A label that a series lacks is empty.
type LabelMatch struct {
	Name  string
	Value string
	Not   bool
}

// ParsedRule is a Rule made ready: of the number that Measure stands for, Op and Limit have to hold.
type ParsedRule struct {
	Measure Measure
	Of      string       // MeasureNet: the interface; MeasureMemory: MemAvailable or MemFree; MeasureMetric: the metric's name
	Labels  []LabelMatch // MeasureMetric: sorted; every series that fits them has to keep the rule
	Op      string       // <, <=, >, >=, == or !=
	Limit   float64      // finite, in Unit
	Unit    string
}

// Bounds of rules.
const (
	MaxRules     = 32  // of a check
	MaxRuleName  = 512 // bytes
	MaxRuleWant  = 64  // bytes
	maxMatches   = 16
	maxInterface = 64 // bytes; 15 on Linux
)

const ruleNames = "cpu, mem_free, mem_free(MemFree), load1, net(INTERFACE), or a metric with its labels such as node_filesystem_avail_bytes{mountpoint=\"/\"}"

// ParseRule reads a rule. Of the four named measures the limit itself is allowed whether < or <= is written, as in dynlbd; cpu, mem_free
// and net want a percentage, mem_free also takes a size, load1 a number or cores. A metric is compared exactly as written, with a number, a
// size or cores. Cores may have a factor, as in "<= 1.5 cores".
func ParseRule(r Rule) (ParsedRule, error) {
	p, err := parseMeasure(strings.TrimSpace(r.Name))
	if err != nil {
		return ParsedRule{}, err
	}
	if err := p.parseWant(strings.TrimSpace(r.Want)); err != nil {
		return ParsedRule{}, fmt.Errorf("rule %s: %w", p.name(), err)
	}
	return p, nil
}

// DefaultRules returns what a rule's name alone stands for: cpu < 90%, mem_free > 5%, load1 <= cores, net(INTERFACE) < 80%, and for all
// the first three. A metric has no default.
func DefaultRules(name string) ([]Rule, error) {
	name = strings.TrimSpace(name)
	if name == "all" {
		return []Rule{{"cpu", "< 90%"}, {"mem_free", "> 5%"}, {"load1", "<= cores"}}, nil
	}
	p, err := parseMeasure(name)
	if err != nil {
		return nil, err
	}
	switch p.Measure {
	case MeasureCPU:
		return []Rule{{p.name(), "< 90%"}}, nil
	case MeasureMemory:
		return []Rule{{p.name(), "> 5%"}}, nil
	case MeasureLoad:
		return []Rule{{p.name(), "<= cores"}}, nil
	case MeasureNet:
		return []Rule{{p.name(), "< 80%"}}, nil
	}
	return nil, fmt.Errorf("rule %s: a metric needs a comparison, as in {%q: \"< 100\"}", p.name(), p.name())
}

// Rule is the rule in canonical form: rules that are equal in it are the same.
func (p ParsedRule) Rule() Rule { return Rule{Name: p.name(), Want: p.want()} }

// Holds reports whether a number keeps the rule on a machine of so many cores. The percentages of cpu and net are rounded to whole ones
// first. Not a number keeps none.
func (p ParsedRule) Holds(value float64, cores int) bool {
	limit := p.Limit
	switch {
	case p.Unit == UnitCores:
		limit *= float64(cores)
	case sizes[p.Unit] != 0:
		limit *= sizes[p.Unit]
	}
	op := p.Op
	switch p.Measure {
	case MeasureCPU, MeasureNet:
		value = math.Round(value)
		op = "<="
	case MeasureLoad:
		op = "<="
	case MeasureMemory:
		op = ">="
	}
	switch op {
	case "<":
		return value < limit
	case "<=":
		return value <= limit
	case ">":
		return value > limit
	case ">=":
		return value >= limit
	case "==":
		return value == limit
	}
	return value != limit && !math.IsNaN(value)
}

// NeedsCores reports whether the number of cores takes part.
func (p ParsedRule) NeedsCores() bool { return p.Unit == UnitCores }

// Fits reports whether a series of the metric with these labels is one of the rule; label returns the value of a label, or "".
func (p ParsedRule) Fits(label func(name string) string) bool {
	for _, m := range p.Labels {
		if (label(m.Name) == m.Value) == m.Not {
			return false
		}
	}
	return true
}

// Show is the rule's number and what it has to be, for people: "cpu 93 %, want < 90 %".
func (p ParsedRule) Show(value float64, cores int) string {
	want := strings.TrimSuffix(p.want(), "%")
	var is string
	switch {
	case p.Unit == UnitPercent && p.Measure == MeasureMemory:
		is, want = strconv.FormatFloat(math.Floor(value*10)/10, 'f', 1, 64)+" %", want+" %" // 4.96 is less than 5
	case p.Unit == UnitPercent:
		is, want = strconv.FormatFloat(math.Round(value), 'f', 0, 64)+" %", want+" %"
	case p.Unit == UnitNone, p.Unit == UnitCores:
		is = strconv.FormatFloat(value, 'g', -1, 64)
	default:
		is = strconv.FormatFloat(value/sizes[p.Unit], 'g', 6, 64) + p.Unit
	}
	if p.Unit == UnitCores {
		want += fmt.Sprintf(" (%d)", cores)
	}
	return p.name() + " " + is + ", want " + want
}

// name is the canonical Name.
func (p ParsedRule) name() string {
	switch p.Measure {
	case MeasureCPU:
		return "cpu"
	case MeasureMemory:
		if p.Of == "MemFree" {
			return "mem_free(MemFree)"
		}
		return "mem_free"
	case MeasureLoad:
		return "load1"
	case MeasureNet:
		return "net(" + p.Of + ")"
	}
	if len(p.Labels) == 0 {
		if plain(p.Of) {
			return p.Of
		}
		return p.Of + "{}"
	}
	var b strings.Builder
	b.WriteString(p.Of)
	sep := byte('{')
	for _, m := range p.Labels {
		b.WriteByte(sep)
		sep = ','
		b.WriteString(m.Name)
		if m.Not {
			b.WriteByte('!')
		}
		b.WriteString(`="`)
		_, _ = labelEscapes.WriteString(&b, m.Value)
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// labelEscapes are those of the Prometheus text format.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// want is the canonical Want.
func (p ParsedRule) want() string {
	number := strconv.FormatFloat(p.Limit, 'g', -1, 64)
	switch {
	case p.Unit == UnitCores && p.Limit == 1:
		return p.Op + " cores"
	case p.Unit == UnitCores:
		return p.Op + " " + number + " cores"
	}
	return p.Op + " " + number + p.Unit
}

func parseMeasure(name string) (ParsedRule, error) {
	if len(name) > MaxRuleName {
		return ParsedRule{}, fmt.Errorf("rule %q… has %d bytes, the limit is %d", name[:32], len(name), MaxRuleName)
	}
	if !utf8.ValidString(name) {
		return ParsedRule{}, fmt.Errorf("rule %q is not UTF-8", name)
	}
	if of, ok := strings.CutPrefix(name, "net("); ok {
		of, ok = strings.CutSuffix(of, ")")
		if !ok || of == "" || len(of) > maxInterface || strings.ContainsFunc(of, notInterface) {
			return ParsedRule{}, fmt.Errorf("rule %q: want the name of an interface, as in net(eth0)", name)
		}
		return ParsedRule{Measure: MeasureNet, Of: of}, nil
	}
	switch name {
	case "cpu":
		return ParsedRule{Measure: MeasureCPU}, nil
	case "mem_free", "mem_free(MemAvailable)":
		return ParsedRule{Measure: MeasureMemory, Of: "MemAvailable"}, nil
	case "mem_free(MemFree)":
		return ParsedRule{Measure: MeasureMemory, Of: "MemFree"}, nil
	case "load1":
		return ParsedRule{Measure: MeasureLoad}, nil
	}
	return parseSelector(name)
}

func notInterface(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`/"\(){},`, r) }

// plain reports whether a metric's name cannot be taken for a misspelt measure, so that it needs no braces.
func plain(metric string) bool {
	first, _, several := strings.Cut(metric, "_")
	return several && !slices.Contains([]string{"", "all", "cpu", "mem", "load", "net"}, first)
}

// parseSelector reads a metric's name and its labels.
func parseSelector(s string) (ParsedRule, error) {
	bad := func(format string, args ...any) (ParsedRule, error) {
		return ParsedRule{}, fmt.Errorf("rule %q: "+format, append([]any{s}, args...)...)
	}
	metric, rest, braces := strings.Cut(s, "{")
	metric = strings.TrimSpace(metric)
	p := ParsedRule{Measure: MeasureMetric, Of: metric}
	switch {
	case !isMetric(metric, true):
		return bad("want %s", ruleNames)
	case !braces && !plain(metric):
		return bad("want %s; if %s is a metric's name write %s{}", ruleNames, metric, metric)
	case !braces:
		return p, nil
	}
	for {
		rest = strings.TrimSpace(rest)
		if rest == "}" {
			break
		}
		end := strings.IndexAny(rest, "=! \t")
		if end < 0 || !isMetric(rest[:end], false) {
			return bad(`want labels as in {device="eth0",fstype!="tmpfs"}`)
		}
		m := LabelMatch{Name: rest[:end]}
		rest = strings.TrimSpace(rest[end:])
		rest, m.Not = strings.CutPrefix(rest, "!")
		var ok bool
		if rest, ok = strings.CutPrefix(rest, "="); !ok || strings.HasPrefix(rest, "~") {
			return bad("label %s: want = or != and a value in double quotes; there are no patterns", m.Name)
		}
		if m.Value, rest, ok = labelValue(strings.TrimSpace(rest)); !ok {
			return bad(`label %s: want a value in double quotes, with \" \\ and \n escaped`, m.Name)
		}
		if p.Labels = append(p.Labels, m); len(p.Labels) > maxMatches {
			return bad("more than %d labels", maxMatches)
		}
		rest = strings.TrimSpace(rest)
		if after, more := strings.CutPrefix(rest, ","); more {
			rest = after
		} else if rest != "}" {
			return bad("want , or } after label %s", m.Name)
		}
	}
	slices.SortFunc(p.Labels, func(a, b LabelMatch) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Value, b.Value), cmp.Compare(boolInt(a.Not), boolInt(b.Not)))
	})
	p.Labels = slices.Compact(p.Labels)
	if len(p.name()) > MaxRuleName {
		return bad("it takes more than %d bytes", MaxRuleName)
	}
	return p, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// isMetric reports whether s is a metric's name, or without colons a label's.
func isMetric(s string, colons bool) bool {
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', c == ':' && colons, '0' <= c && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return s != ""
}

// labelValue reads a quoted value and returns what follows it.
func labelValue(s string) (value, rest string, ok bool) {
	if s == "" || s[0] != '"' {
		return "", "", false
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; c {
		case '"':
			return b.String(), s[i+1:], true
		case '\\':
			i++
			if i == len(s) {
				return "", "", false
			}
			switch s[i] {
			case 'n':
				b.WriteByte('\n')
			case '\\', '"':
				b.WriteByte(s[i])
			default:
				return "", "", false
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// parseWant reads the comparison.
func (p *ParsedRule) parseWant(s string) error {
	ops, limits := []string{"<=", "<"}, "a percentage, as in < 90%"
	switch p.Measure {
	case MeasureMemory:
		ops, limits = []string{">=", ">"}, "a percentage or a size, as in > 5% or > 500MiB"
	case MeasureLoad:
		limits = "a number or cores, as in <= cores or <= 1.5 cores"
	case MeasureMetric:
		ops, limits = []string{"<=", "<", ">=", ">", "==", "!="}, "a number, a size or cores, as in < 100, > 500MiB or <= 2 cores"
	}
	want := fmt.Errorf("%q: want %s and %s", s[:min(len(s), MaxRuleWant)], strings.Join(ops, " or "), limits)
	if len(s) > MaxRuleWant {
		return fmt.Errorf("%w; it has %d bytes, the limit is %d", want, len(s), MaxRuleWant)
	}
	i := slices.IndexFunc(ops, func(op string) bool { return strings.HasPrefix(s, op) })
	if i < 0 {
		return want
	}
	p.Op = ops[i]
	limit := strings.TrimSpace(s[len(p.Op):])
	end := strings.LastIndexAny(limit, "0123456789.") + 1
	number, unit := limit[:end], strings.TrimSpace(limit[end:])
	if number == "" && unit == UnitCores {
		number = "1"
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.ContainsAny(number, "_xXpPiInN") || math.IsInf(value, 0) {
		return want
	}
	p.Limit, p.Unit = value, unit
	if value == 0 {
		p.Limit = 0 // not -0
	}
	size, metric := sizes[unit] != 0, p.Measure == MeasureMetric
	var ok bool
	switch p.Measure {
	case MeasureCPU, MeasureNet:
		ok = unit == UnitPercent
	case MeasureMemory:
		ok = unit == UnitPercent || size
	case MeasureLoad:
		ok = unit == UnitNone || unit == UnitCores
	case MeasureMetric:
		ok = unit == UnitNone || unit == UnitCores || size
	}
	switch {
	case !ok && metric && unit == UnitPercent:
		return fmt.Errorf("%w; a metric is compared as it stands, so of what would this be a percentage?", want)
	case !ok:
		return want
	case unit == UnitPercent && (value < 0 || value > 100):
		return fmt.Errorf("%w; a percentage is between 0 and 100", want)
	case value < 0 && !metric, math.IsInf(value*cmp.Or(sizes[unit], 1), 0):
		return fmt.Errorf("%w; %g is out of range", want, value)
	}
	return nil
}
