package config

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"maps"
	"slices"
	"time"
)

// Sources is what a configuration was made of: the files, secrets and zone files included, what they held, and which files its
// include patterns found. The zero value is made of nothing.
type Sources struct {
	digests map[string][sha256.Size]byte
	globs   map[string][]string
}

// sum is one number for all of it.
type sum [sha256.Size]byte

// Fingerprint returns what tells these sources from others, in hexadecimal digits: other files, or other content.
func (s Sources) Fingerprint() string {
	now := s.seen()
	return hex.EncodeToString(now[:])
}

// seen returns the sum of what was read.
func (s Sources) seen() sum {
	return s.total(func(path string) [sha256.Size]byte { return s.digests[path] }, func(pattern string) []string { return s.globs[pattern] })
}

// now returns the sum of what stands there at the moment.
func (s Sources) now(fsys filesystem) sum {
	digest := func(path string) [sha256.Size]byte {
		text, _, err := fsys.read(path, maxConfig)
		if err != nil {
			return sha256.Sum256([]byte("error: " + err.Error()))
		}
		return sha256.Sum256(text)
	}
	glob := func(pattern string) []string {
		paths, _ := fsys.glob(pattern)
		slices.Sort(paths)
		return paths
	}
	return s.total(digest, glob)
}

func (s Sources) total(digest func(string) [sha256.Size]byte, glob func(string) []string) sum {
	h := sha256.New()
	text := func(t string) {
		_ = binary.Write(h, binary.BigEndian, uint64(len(t)))
		h.Write([]byte(t))
	}
	for _, path := range slices.Sorted(maps.Keys(s.digests)) {
		text(path)
		d := digest(path)
		h.Write(d[:])
	}
	for _, pattern := range slices.Sorted(maps.Keys(s.globs)) {
		text(pattern)
		for _, path := range glob(pattern) {
			text(path)
		}
	}
	return sum(h.Sum(nil))
}

// DefaultWatch is how often Watch looks when it is not told.
const DefaultWatch = 3 * time.Second

// Watch looks at the files of the configuration in force, every so often, and calls changed when what they hold is no longer
// what was read, whatever their times say. A change is reported once, when two looks in a row have seen the same: a file that is
// being written is waited for. sources returns those of the configuration in force, so that Watch follows a reload; after a
// reload that failed it stays quiet until the files change again. Watch returns when ctx ends.
func Watch(ctx context.Context, every time.Duration, sources func() Sources, changed func()) error {
	return watch(ctx, cmp.Or(every, DefaultWatch), machine{}, sources, changed)
}

func watch(ctx context.Context, every time.Duration, fsys filesystem, sources func() Sources, changed func()) error {
	t := time.NewTicker(every)
	defer t.Stop()
	var last, told sum
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
		s := sources()
		now := s.now(fsys)
		if now != s.seen() && now == last && now != told {
			told = now
			changed()
		}
		if now == s.seen() {
			told = sum{}
		}
		last = now
	}
}
