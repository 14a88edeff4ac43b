package main

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"
)

// newStore opens a store in a temporary directory and checks the whole
// database when the test ends.
func newStore(t testing.TB) *store {
	t.Helper()
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.check(); err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// commit appends commands to the log of a store and applies them.
func commit(t testing.TB, s *store, commands ...*command) []applied {
	t.Helper()
	disk, err := s.saved()
	if err != nil {
		t.Fatal(err)
	}
	last := disk.Last
	var entries []entry
	for i, c := range commands {
		data, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry{Index: last + 1 + uint64(i), Term: 1, Kind: entryCommand, Data: data})
	}
	if err := s.persist(nil, entries); err != nil {
		t.Fatal(err)
	}
	results, err := s.applyUpTo(math.MaxUint64)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

var testStart = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano()

// fill puts n jobs into the store and returns their versions.
func fill(t testing.TB, s *store, n int) []jobVersion {
	t.Helper()
	var commands []*command
	for i := range n {
		commands = append(commands, &command{Now: testStart, Request: fmt.Sprint("fill ", i), Put: []jobPut{{
			Job:  job{Name: fmt.Sprintf("job-%06d", i), Schedule: "0 0 0 1 1 *", Executor: "http", ExecutorConfig: map[string]string{"method": "GET", "url": "http://127.0.0.1/"}, Metadata: map[string]string{"team": fmt.Sprint("t", i%7)}},
			Next: testStart + int64(i)}}})
	}
	var versions []jobVersion
	for _, r := range commit(t, s, commands...) {
		versions = append(versions, jobVersion{r.Jobs[0], int64(r.Index)})
	}
	return versions
}

func BenchmarkStore_page(b *testing.B) {
	s := newStore(b)
	fill(b, s, 10_000)
	b.ResetTimer()
	for i := range b.N {
		start := i * 7919 % 9950
		rows, _, err := s.jobs(jobFilter{}, start, start+50)
		if err != nil || len(rows) != 50 {
			b.Fatal(len(rows), err)
		}
	}
}

func BenchmarkStore_put(b *testing.B) {
	s := newStore(b)
	fill(b, s, b.N)
}

// writeNewerStore makes a database that a later version has written.
func writeNewerStore(t testing.TB, dir string) {
	t.Helper()
	s, err := openStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.exec(fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1)), s.close()); err != nil {
		t.Fatal(err)
	}
}
