// The cluster file owns how several servers agree on one log.
//
// This upper half is the protocol as a value: Raft (Ongaro, "Consensus:
// Bridging Theory and Practice", 2014; "thesis" below) with a bully election:
// who stands first is decided by rank, which is the order of names. It reads no
// clock and no disk, sends nothing and starts nothing. It is told of ticks,
// messages, proposals and finished writes, and says in ready what the outside
// must do. So any history can be replayed from a seed, and the simulation in
// cluster_test.go does. One goroutine, the driver below, owns the value.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

const (
	appendEntriesMax  = 1_000    // in one append
	appendBytesMax    = 1 << 20  // of data in one append, unless a single entry is larger
	backlogEntriesMax = 10_000   // proposed and not yet committed
	backlogBytesMax   = 16 << 20 // proposed and not yet on this server's disk: they are held in memory
)

var (
	errNotLeader     = errors.New("this server is not the leader")                                           // propose, removeVoter, transfer
	errBusy          = errors.New("the leader has too much under way; try again")                            // propose, removeVoter, transfer
	errLastVoter     = errors.New("the last voter cannot be removed")                                        // removeVoter
	errMalformed     = errors.New("malformed message")                                                       // step: nothing was changed
	errMisdirected   = errors.New("message for another server")                                              // step: nothing was changed
	errSecondLeader  = errors.New("two leaders in one term: a data directory was copied or set back")        // step: fatal
	errBrokenHistory = errors.New("the leader contradicts committed entries: a data directory was set back") // step: fatal
)

// A server is a name, unique among live servers, and the random id that was
// made with its data directory. A new disk under an old name is another server.
type server struct{ Name, ID string }

// An entryKind says who reads an entry.
type entryKind uint8

const (
	entryCommand entryKind = iota // the state machine
	entryNoop                     // nobody: a leader's first entry, which commits those before it (thesis 3.6.2)
	entryVoters                   // the protocol: Data is a JSON list of servers, in order of names
)

// An entry is one place in the log. Its Data belongs to the log and is never changed.
type entry struct {
	Index, Term uint64
	Kind        entryKind
	Data        []byte
}

// A position names an entry. Two logs that hold the same position are equal
// up to there (thesis 3.5); the zero position is in every log.
type position struct{ Index, Term uint64 }

// hardState is what a server must never forget. Vote is a server's id, or ""
// for none in this term.
type hardState struct {
	Term uint64
	Vote string
}

// A voterSet is the voters from the entry at Index on, in order of names.
type voterSet struct {
	Index  uint64
	Voters []server
}

// A snapshot stands for all entries up to its position. The driver keeps the
// data; the value only sees where it ends and who the voters were.
type snapshot struct {
	position
	Voters []server
}

type messageKind uint8

const (
	msgPreVote messageKind = iota + 1 // would you vote for me in Term?
	msgPreVoteReply
	msgVote // vote for me in Term
	msgVoteReply
	msgAppend // heartbeat, and entries behind Prev
	msgAppendReply
	msgSnapshot // for a follower that needs entries which are gone
	msgStand    // the leader hands over: stand for election now
)

// A message goes from one server to another. It may be lost, repeated, late or
// out of order.
type message struct {
	Kind     messageKind
	From, To server
	Term     uint64

	// Prev is the entry before Entries (append), where the snapshot ends
	// (snapshot), the candidate's last entry (votes), or the Prev that is
	// refused (reply).
	Prev position
	// Last is the last entry that an append is to carry. If Entries is empty
	// and Last is behind Prev, the driver reads the range from disk, and may
	// send fewer: at most about appendBytesMax. It drops an append whose range
	// was trimmed meanwhile.
	Last    uint64
	Entries []entry
	Commit  uint64
	Voters  []server // snapshot
	// Handover, in a vote, is the term of a leader that told this candidate to
	// stand for the next one.
	Handover uint64

	Match  uint64   // reply to an append: equal to the leader's log and durable up to here
	Hint   position // refused append: the highest entry that may be in both logs
	Reject bool
}

// raftConfig is fixed for the life of a raft. Durations are in ticks.
type raftConfig struct {
	self           server
	heartbeatTicks int // between two appends of an idle leader
	electionTicks  int // of silence until a leader counts as gone; several heartbeats
	stepTicks      int // that each rank waits longer than the one above it
	snapshotTicks  int // until a snapshot that nobody acknowledged is sent again
}

// saved is what a server finds on its disk when it starts.
type saved struct {
	State   hardState
	Base    position   // last entry dropped from the log; zero: none
	Terms   []position // first entry of each run of equal terms behind Base
	Last    uint64     // last entry of the log, Base.Index if it is empty
	Applied uint64     // by the state machine
	Voters  []voterSet // as of Applied, then one for each voter entry behind it
}

// bootstrap is what every founding server writes to its empty disk once all of
// them have accepted the list: the same first entry, in a term without leader.
func bootstrap(voters []server) (hardState, entry) {
	return hardState{Term: 1}, entry{Index: 1, Term: 1, Kind: entryVoters, Data: encodeVoters(voters)}
}

// ready is what the outside must do. Messages may leave at once: what must not
// leave before a write is durable appears in a later ready. If writes reports
// true, the driver installs Snapshot, then writes State and Entries, which
// replace whatever the log holds from Entries[0].Index on, in one durable
// transaction, and calls persisted; until then no other ready asks for a
// write, while ticks, messages and proposals go on. Commit asks to apply the
// log up to there; those entries are on this server's disk.
//
// A crash at any moment leaves either nothing or all of a write, and no
// message that tells of it has left before.
type ready struct {
	Messages []message
	State    *hardState // nil: as before
	Snapshot *snapshot  // nil: none
	Entries  []entry
	Commit   uint64 // 0: as before
}

func (rd *ready) writes() bool {
	return rd.State != nil || rd.Snapshot != nil || len(rd.Entries) > 0
}

// raftStatus is what others may know of a raft.
type raftStatus struct {
	Leading      bool   // in office: this server appends
	Established  bool   // and an entry of its own term is committed, so it knows all that ever was
	HandingOver  bool   // and waits for another to take over: it accepts no proposals
	Leader       server // zero: unknown
	Term, Commit uint64
	Last         uint64 // entry in the log
	Voters       []server
	VotersIndex  uint64 // of the entry that made them
}

type raftRole uint8

const (
	roleFollower  raftRole = iota // also learners, and servers that know of no voters
	roleAsking                    // would stand, asks whether it could win
	roleCandidate                 // has voted for itself in its term
	roleLeader
)

// A peer is the leader's view of another voter or learner.
type peer struct {
	server
	match  uint64 // its log is durable and equal to ours up to here
	next   uint64 // first entry to send
	wait   int    // ticks until an unanswered append or snapshot is sent again; 0: none under way
	silent int    // ticks since it answered
	commit uint64 // commit index it was last told
}

// raft is one server's part in the protocol.
//
// check tests these on one value:
//
//  1. Term and vote on disk are never ahead of those in memory, and a vote is
//     not changed within its term.
//  2. base <= commit <= last: what is committed is never cut off.
//  3. Terms do not fall along the log and none is above the server's own.
//  4. tail holds exactly the entries behind durable.
//  5. Voter sets are in order of the log, and the first is committed.
//  6. Only votes wait for the disk, only while it lags behind.
//  7. Who stands is a voter; who leads has its own vote on disk.
//  8. match < next <= last+1 for every peer, and at most one voter change is
//     not committed, none before the leader's first entry.
//
// And these hold between servers, which the simulation tests after each event:
//
//  9. At most one leader in a term.
//  10. Logs that hold the same position are equal up to there.
//  11. What is committed stays, and is in the log of every later leader.
//  12. A server that follows a working leader, or is one, is not moved to
//     another term by a candidate, unless that leader told it to stand.
type raft struct {
	cfg raftConfig // fixed after newRaft
	rnd *rand.Rand

	state  hardState // in force
	stored hardState // on disk
	log    raftLog
	snap   *snapshot // to be installed, nil once it is
	commit uint64    // committed as far as known
	told   uint64    // commit index that ready has given out

	role    raftRole
	leader  server // of this term, zero if unknown
	elapsed int    // ticks since the leader was heard, a vote given or a round begun
	timeout int    // elapsed at which to stand

	matched uint64   // follower: equal to the leader's log up to here
	acked   uint64   // follower: what it told this leader
	votes   []string // asking, candidate: ids that said yes

	// Of the leader.
	peers    []peer // other voters and learners, by name and id
	first    uint64 // its first entry
	beat     int    // ticks since the last heartbeat
	heir     server // to whom it hands over, zero if nobody
	heirWait int    // ticks since it began to

	learners []server // what setLearners said last

	out      []message // may leave
	held     []message // may leave once state is durable
	writing  bool      // a write is under way
	writeAge int       // ticks since it began
}

// newRaft returns a follower that continues from what is on its disk. rnd
// belongs to it from now on.
func newRaft(cfg raftConfig, disk saved, rnd *rand.Rand) *raft {
	r := &raft{cfg: cfg, rnd: rnd, state: disk.State, stored: disk.State, commit: disk.Applied, told: disk.Applied}
	r.log = raftLog{base: disk.Base, runs: slices.Clone(disk.Terms), last: disk.Last, durable: disk.Last, voters: slices.Clone(disk.Voters)}
	if len(r.log.voters) == 0 {
		r.log.voters = []voterSet{{Index: disk.Applied}}
	}
	r.rest(r.rankWait())
	return r
}

func (r *raft) status() raftStatus {
	v := r.log.voterSet()
	return raftStatus{
		Leading: r.role == roleLeader, Established: r.role == roleLeader && r.commit >= r.first, HandingOver: r.heir != server{},
		Leader: r.leader, Term: r.state.Term, Commit: r.commit, Last: r.log.last, Voters: v.Voters, VotersIndex: v.Index,
	}
}

// Time

// tick says that one unit of time has passed.
func (r *raft) tick() {
	r.elapsed++
	if r.writing {
		r.writeAge++
	}
	if r.role == roleLeader {
		r.tickLeader()
	} else if r.elapsed >= r.timeout && !r.hung() {
		r.ask()
	}
}

// hung reports whether the disk has kept a write for so long that this server
// had better not lead.
func (r *raft) hung() bool { return r.writing && r.writeAge >= r.cfg.electionTicks }

func (r *raft) tickLeader() {
	for i := range r.peers {
		r.peers[i].silent++
		r.peers[i].wait = max(0, r.peers[i].wait-1)
	}
	if r.hung() || !r.hasMajority(r.alive) {
		r.become(roleFollower, server{}) // thesis 6.2: clients must not wait for a leader that cannot commit
		return
	}
	if r.heir != (server{}) {
		if r.heirWait++; r.heirWait >= r.cfg.electionTicks {
			r.heir = server{}
		}
	}
	if r.beat++; r.beat >= r.cfg.heartbeatTicks {
		r.beat = 0
		for i := range r.peers {
			r.sendHeartbeat(&r.peers[i])
		}
	}
	r.changeVoters()
}

// stalled says that this server did not run for an election timeout: whatever
// it believes about the others is out of date.
func (r *raft) stalled() { r.become(roleFollower, server{}) }

// rest starts the wait for a leader anew.
func (r *raft) rest(wait int) { r.elapsed, r.timeout = 0, wait }

// rankWait is the bully rule: when a leader is lost, the first by name stands
// first and usually finds no rival. The heartbeat on top lets the others notice
// the loss as well, as until then they would say no.
func (r *raft) rankWait() int {
	voters := r.log.voterSet().Voters
	rank := slices.Index(voters, r.cfg.self)
	if len(voters) == 1 && rank == 0 {
		return 1 // nobody else can lead
	}
	if rank < 0 {
		rank = len(voters) // it was removed, and may be needed for that (mayStand)
	}
	return r.cfg.electionTicks + r.cfg.heartbeatTicks + rank*r.cfg.stepTicks
}

// randomWait follows a round without winner: rivals that met once must not
// meet for ever, and a rank that cannot win must not keep the others away.
func (r *raft) randomWait() int { return 2*r.cfg.heartbeatTicks + r.rnd.IntN(r.cfg.electionTicks) }

// Roles

// become enters a role in the present term and forgets all that belonged to
// the last one.
func (r *raft) become(role raftRole, leader server) {
	r.role, r.leader = role, leader
	r.votes, r.peers, r.heir = nil, nil, server{}
	// Every leader has all that is committed (thesis 3.6.3, leader completeness).
	r.matched, r.acked = r.commit, 0
	r.rest(r.rankWait())
}

// enterTerm moves to a later term. Votes that still wait for the disk are void.
func (r *raft) enterTerm(term uint64, vote string) {
	r.state, r.held = hardState{term, vote}, nil
}

// ask begins a round with the question whether it can be won (thesis 9.6), so
// that a server which was cut off does not come back with a higher term.
func (r *raft) ask() {
	if !r.mayStand() {
		return
	}
	r.become(roleAsking, server{})
	r.rest(r.randomWait())
	for _, v := range r.log.voterSet().Voters {
		if v != r.cfg.self {
			r.send(message{Kind: msgPreVote, To: v, Term: r.state.Term + 1, Prev: r.log.end()})
		}
	}
	r.countVote(r.cfg.self.ID)
}

// stand asks for votes in the next term. The requests, and the server's own
// vote, wait until term and vote are durable.
func (r *raft) stand(handover uint64) {
	r.enterTerm(r.state.Term+1, r.cfg.self.ID)
	r.become(roleCandidate, server{})
	r.rest(r.randomWait())
	for _, v := range r.log.voterSet().Voters {
		m := message{Kind: msgVote, To: v, Term: r.state.Term, Prev: r.log.end(), Handover: handover}
		if v == r.cfg.self {
			m = message{Kind: msgVoteReply, To: v, Term: r.state.Term}
		}
		r.hold(m)
	}
}

func (r *raft) countVote(id string) {
	if !slices.Contains(r.votes, id) {
		r.votes = append(r.votes, id)
	}
	switch won := r.hasMajority(func(id string) bool { return slices.Contains(r.votes, id) }); {
	case won && r.role == roleAsking:
		r.stand(0)
	case won && r.role == roleCandidate:
		r.lead()
	}
}

// lead takes office with an entry of the new term, which also commits what
// earlier leaders left behind (thesis 3.6.2).
func (r *raft) lead() {
	r.become(roleLeader, r.cfg.self)
	r.first, r.beat = r.log.last+1, 0
	r.append(entryNoop, nil)
	r.setPeers()
}

// Messages

// step takes one message. errMalformed and errMisdirected leave everything as
// it was; any other error means that this cluster's data cannot be trusted.
func (r *raft) step(m message) error {
	if err := r.validate(m); err != nil {
		return err
	}
	if m.Kind == msgPreVote || m.Kind == msgVote {
		r.stepVote(m)
		return nil
	}
	if m.Term < r.state.Term {
		r.refuseOld(m)
		return nil
	}
	// A yes to the question names the term that is asked for, in which nobody is yet.
	if m.Term > r.state.Term && !(m.Kind == msgPreVoteReply && !m.Reject) {
		r.enterTerm(m.Term, "")
		r.become(roleFollower, server{})
	}
	if r.role == roleLeader {
		return r.stepLeader(m)
	}
	return r.stepFollower(m)
}

func (r *raft) stepLeader(m message) error {
	switch m.Kind {
	case msgAppendReply:
		r.onAppendReply(m)
	case msgAppend, msgSnapshot:
		return errSecondLeader
	case msgPreVoteReply, msgVoteReply, msgStand:
		// Answers that were not needed, or an order meant for the time before.
	}
	return nil
}

// stepFollower is for candidates too: who hears a leader of its term follows it.
func (r *raft) stepFollower(m message) error {
	switch m.Kind {
	case msgAppend:
		return r.onAppend(m)
	case msgSnapshot:
		r.onSnapshot(m)
	case msgStand:
		if m.From == r.leader && r.mayStand() && !r.hung() {
			r.stand(m.Term)
		}
	case msgPreVoteReply:
		if r.role == roleAsking && !m.Reject && m.Term == r.state.Term+1 {
			r.countVote(m.From.ID)
		}
	case msgVoteReply:
		if r.role == roleCandidate && !m.Reject {
			r.countVote(m.From.ID)
		}
	case msgAppendReply:
		// To a leader that has stepped down.
	}
	return nil
}

// refuseOld tells the sender of an old term which one it is now: an old leader
// steps down.
func (r *raft) refuseOld(m message) {
	if m.Kind == msgAppend || m.Kind == msgSnapshot {
		r.send(message{Kind: msgAppendReply, To: m.From, Term: r.state.Term, Prev: m.Prev, Reject: true})
	}
}

// stepVote answers a vote or the question before it. A server answers whether
// or not its own log makes it a voter: who needs its vote has the newer list
// (thesis 4.1). A server with an empty disk has a new id, which is in nobody's.
func (r *raft) stepVote(m message) {
	if r.loyal(m) {
		r.answerVote(m, false)
		return
	}
	if m.Kind == msgVote && m.Term > r.state.Term {
		r.enterTerm(m.Term, "")
		r.become(roleFollower, server{})
	}
	yes := r.mayVote(m) && r.upToDate(m.Prev)
	if yes && m.Kind == msgVote {
		r.state.Vote = m.From.ID
		r.become(roleFollower, server{})
	}
	r.answerVote(m, yes)
}

// loyal reports whether a working leader keeps this server from listening to a
// candidate (thesis 4.2.3). The leader's order to hand over lifts that for the
// one candidate that got it, and for the next term only.
func (r *raft) loyal(m message) bool {
	if m.Kind == msgVote && m.Handover != 0 && m.Handover+1 == m.Term {
		return false
	}
	return r.role == roleLeader || r.leader != server{} && r.elapsed < r.cfg.electionTicks
}

// mayVote: once in a term, and not where a leader is known.
func (r *raft) mayVote(m message) bool {
	if m.Kind == msgPreVote {
		return m.Term > r.state.Term
	}
	return m.Term == r.state.Term && r.leader == server{} && (r.state.Vote == "" || r.state.Vote == m.From.ID)
}

// upToDate is the election restriction (thesis 3.6.1): a leader must have all
// that is committed, and one of the majority that voted for it has.
func (r *raft) upToDate(last position) bool {
	own := r.log.end()
	return last.Term > own.Term || last.Term == own.Term && last.Index >= own.Index
}

// answerVote sends a yes only when it is durable. A no promises nothing.
func (r *raft) answerVote(m message, yes bool) {
	a := message{Kind: msgVoteReply, To: m.From, Term: r.state.Term, Reject: !yes}
	if m.Kind == msgPreVote {
		a.Kind = msgPreVoteReply
	}
	switch {
	case !yes:
		r.send(a)
	case m.Kind == msgPreVote:
		a.Term = m.Term
		r.send(a)
	default:
		r.hold(a)
	}
}

// Followers

// follow notes that a leader of this term was heard.
func (r *raft) follow(leader server) {
	if r.role != roleFollower || r.leader != leader {
		r.become(roleFollower, leader)
	}
	r.rest(r.rankWait())
}

// onAppend takes a heartbeat or entries. Only entries that contradict the
// leader's are cut off: a late, shorter append must not undo a newer one.
func (r *raft) onAppend(m message) error {
	r.follow(m.From)
	if m.Prev.Index > r.commit && r.log.term(m.Prev.Index) != m.Prev.Term {
		r.send(message{Kind: msgAppendReply, To: m.From, Term: r.state.Term, Match: r.ackable(), Prev: m.Prev, Hint: r.log.back(m.Prev), Reject: true})
		return nil
	}
	for _, e := range m.Entries {
		switch {
		case r.log.term(e.Index) == e.Term || e.Index <= r.log.base.Index:
		case e.Index <= r.commit:
			return errBrokenHistory
		default:
			r.log.add(e)
		}
	}
	r.matched = max(r.matched, m.Prev.Index+uint64(len(m.Entries)))
	r.commitTo(min(m.Commit, r.matched))
	// A heartbeat is answered from memory: a slow disk is no election.
	if len(m.Entries) == 0 || r.matched <= r.log.durable {
		r.ack()
	}
	return nil
}

// onSnapshot has a snapshot installed, if it is newer than what is committed
// here. If the log holds its last entry, that part is just committed.
func (r *raft) onSnapshot(m message) {
	r.follow(m.From)
	switch {
	case m.Prev.Index <= r.commit:
	case r.log.term(m.Prev.Index) == m.Prev.Term:
		r.commitTo(m.Prev.Index)
	default:
		r.snap = &snapshot{m.Prev, m.Voters}
		r.log = raftLog{base: m.Prev, last: m.Prev.Index, durable: m.Prev.Index, voters: []voterSet{{m.Prev.Index, m.Voters}}}
		r.commit = m.Prev.Index
	}
	r.matched = max(r.matched, r.commit)
	r.ack()
}

// ackable is how far this log is durable and equal to the leader's.
func (r *raft) ackable() uint64 {
	if r.snap != nil {
		return 0
	}
	return min(r.matched, r.log.durable)
}

func (r *raft) ack() {
	r.acked = r.ackable()
	r.send(message{Kind: msgAppendReply, To: r.leader, Term: r.state.Term, Match: r.acked})
}

// Leader

// propose appends commands, in order and without gaps, and returns the index
// of the first. They are committed when a status of the same term says so; in
// a later term their fate is in the log. errNotLeader and errBusy: none was
// appended. The data is the raft's from now on.
func (r *raft) propose(data ...[]byte) (first uint64, err error) {
	switch {
	case r.role != roleLeader:
		return 0, errNotLeader
	case r.heir != (server{}) || r.log.last-r.commit >= backlogEntriesMax || r.log.tailBytes >= backlogBytesMax:
		return 0, errBusy
	}
	first = r.log.last + 1
	for _, d := range data {
		r.append(entryCommand, d)
	}
	return first, nil
}

func (r *raft) append(kind entryKind, data []byte) {
	r.log.add(entry{r.log.last + 1, r.state.Term, kind, data})
}

// sendAppends gives every peer that waits for nothing what it lacks: one
// append with entries at a time, so that all that is proposed meanwhile goes
// in the next. A peer that does not answer gets heartbeats only.
func (r *raft) sendAppends() {
	for i := range r.peers {
		switch p := &r.peers[i]; {
		case p.wait > 0 || !r.alive(p.ID):
		case p.next <= r.log.base.Index:
			p.wait = r.cfg.snapshotTicks
			r.send(message{Kind: msgSnapshot, To: p.server, Term: r.state.Term})
		case p.next <= r.log.last:
			p.wait = r.cfg.electionTicks
			r.sendEntries(p)
		case p.commit < r.commit:
			r.sendHeartbeat(p)
		}
	}
}

// sendEntries takes what is not yet on this server's disk from memory: the
// followers write at the same time (thesis 10.2.1). What is on disk the driver
// reads.
func (r *raft) sendEntries(p *peer) {
	m := message{Kind: msgAppend, To: p.server, Term: r.state.Term, Commit: r.commit}
	m.Prev = position{p.next - 1, r.log.term(p.next - 1)}
	if p.next > r.log.durable {
		m.Entries = firstEntries(r.log.tail[p.next-r.log.durable-1:])
		m.Last = m.Prev.Index + uint64(len(m.Entries))
	} else {
		m.Last = min(r.log.durable, m.Prev.Index+appendEntriesMax)
	}
	p.commit = r.commit
	r.send(m)
}

// firstEntries is as much of list as one append may carry, at least one.
func firstEntries(list []entry) []entry {
	n, size := 1, len(list[0].Data)
	for n < min(len(list), appendEntriesMax) && size+len(list[n].Data) <= appendBytesMax {
		size += len(list[n].Data)
		n++
	}
	return list[:n:n]
}

// sendHeartbeat sends an append without entries behind what is known to match,
// so that it is never refused.
func (r *raft) sendHeartbeat(p *peer) {
	m := message{Kind: msgAppend, To: p.server, Term: r.state.Term, Commit: r.commit}
	if p.match >= r.log.base.Index {
		m.Prev = position{p.match, r.log.term(p.match)}
	}
	m.Last = m.Prev.Index
	p.commit = r.commit
	r.send(m)
}

func (r *raft) onAppendReply(m message) {
	p := r.peer(m.From.ID)
	if p == nil {
		return
	}
	p.silent = 0
	if m.Match > p.match && m.Match <= r.log.last {
		p.match, p.next, p.wait = m.Match, m.Match+1, 0
		r.countCopies()
	} else if m.Reject && m.Prev.Index == p.next-1 && m.Prev.Index > p.match {
		// The hint skips a whole run of terms at a time (thesis 3.5).
		p.next, p.wait = max(p.match, r.log.back(m.Hint).Index)+1, 0
	}
	r.handOver()
	r.changeVoters()
}

// countCopies commits what a majority has on disk, if it is of this leader's
// own term: an older entry can have a majority and still be overwritten
// (thesis 3.6.2, figure 3.7).
func (r *raft) countCopies() {
	var copies []uint64
	voters := r.log.voterSet().Voters
	for _, v := range voters {
		n := r.log.durable
		if v != r.cfg.self {
			n = r.peer(v.ID).match
		}
		copies = append(copies, n)
	}
	slices.Sort(copies)
	n := copies[len(copies)-majority(len(voters))]
	if n > r.commit && r.log.term(n) == r.state.Term {
		r.commitTo(n)
	}
}

// commitTo raises the commit index. A leader that has committed its own
// removal ends here (thesis 4.2.2).
func (r *raft) commitTo(index uint64) {
	if index <= r.commit {
		return
	}
	r.commit = index
	r.log.forgetVoters(index)
	if r.role == roleLeader && !r.isVoter(r.cfg.self.ID) && r.log.voterSet().Index <= index {
		if heir := r.bestVoter(); heir != nil {
			r.send(message{Kind: msgStand, To: heir.server, Term: r.state.Term})
		}
		r.become(roleFollower, server{})
	}
}

// unreachable says that a message to a server did not get through, so that
// the next try need not wait until the answer is overdue.
func (r *raft) unreachable(id string) {
	if p := r.peer(id); p != nil {
		p.wait = min(p.wait, r.cfg.heartbeatTicks)
	}
}

// transfer begins to hand over, to the voter that has the most of the log
// (thesis 3.10). Proposals are refused until another leads or an election
// timeout has passed. errBusy: nobody is there to take over.
func (r *raft) transfer() error {
	if r.role != roleLeader {
		return errNotLeader
	}
	heir := r.bestVoter()
	if heir == nil {
		return errBusy
	}
	r.heir, r.heirWait = heir.server, 0
	r.handOver()
	return nil
}

func (r *raft) handOver() {
	if r.heir == (server{}) {
		return
	}
	if p := r.peer(r.heir.ID); p != nil && p.match == r.log.last {
		r.send(message{Kind: msgStand, To: p.server, Term: r.state.Term})
	}
}

// bestVoter is the live voter, other than this server, that has most of the
// log; the first by name of equals.
func (r *raft) bestVoter() *peer {
	var best *peer
	for i := range r.peers {
		p := &r.peers[i]
		if r.isVoter(p.ID) && r.alive(p.ID) && (best == nil || p.match > best.match) {
			best = p
		}
	}
	return best
}

// compacted says that the driver has dropped the log up to index, which is applied.
func (r *raft) compacted(index uint64) {
	if index > r.log.base.Index {
		r.log.compact(index)
	}
}

// Voters

func majority(n int) int { return n/2 + 1 }

func (r *raft) isVoter(id string) bool { return r.log.hasVoter(id) }

// hasMajority counts voters, never servers: a learner, a removed server or a
// new disk under an old name has no say.
func (r *raft) hasMajority(yes func(id string) bool) bool {
	n, voters := 0, r.log.voterSet().Voters
	for _, v := range voters {
		if yes(v.ID) {
			n++
		}
	}
	return n >= majority(len(voters))
}

// mayStand: a voter, or one whose removal may yet be undone. Only it may have
// a log with which that can be settled (thesis 4.2.2).
func (r *raft) mayStand() bool {
	return slices.ContainsFunc(r.log.voters, func(v voterSet) bool { return slices.Contains(v.Voters, r.cfg.self) })
}

func (r *raft) peer(id string) *peer {
	for i := range r.peers {
		if r.peers[i].ID == id {
			return &r.peers[i]
		}
	}
	return nil
}

// alive is the leader's view: a server that answered within an election timeout.
func (r *raft) alive(id string) bool {
	p := r.peer(id)
	return id == r.cfg.self.ID || p != nil && p.silent < r.cfg.electionTicks
}

// setPeers makes peers what voters and learners are now.
func (r *raft) setPeers() {
	var peers []peer
	for _, s := range slices.Concat(r.log.voterSet().Voters, r.learners) {
		same := func(p peer) bool { return p.ID == s.ID }
		if s.ID == r.cfg.self.ID || slices.ContainsFunc(peers, same) {
			continue
		}
		if p := r.peer(s.ID); p != nil {
			peers = append(peers, *p)
		} else {
			peers = append(peers, peer{server: s, next: r.log.last}) // a guess, that the answer corrects
		}
	}
	slices.SortFunc(peers, func(a, b peer) int { return compareServers(a.server, b.server) })
	r.peers = peers
}

func compareServers(a, b server) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
}

// setLearners tells which servers wish to be voters: those that the members
// show alive and not leaving. Voters among them change nothing. It may be
// called at any time in any role, always with the whole list; the leader makes
// voters of them as they catch up.
func (r *raft) setLearners(list []server) {
	r.learners = slices.SortedFunc(slices.Values(list), compareServers)
	if r.role == roleLeader {
		r.setPeers()
	}
}

// changeVoters makes a learner that has caught up a voter. A dead voter of its
// name is removed first, which takes a change of its own.
func (r *raft) changeVoters() {
	if !r.mayChangeVoters() {
		return
	}
	voters := r.log.voterSet().Voters
	for _, s := range r.learners {
		if r.isVoter(s.ID) || !r.caughtUp(s.ID) {
			continue
		}
		switch i := slices.IndexFunc(voters, func(v server) bool { return v.Name == s.Name }); {
		case i < 0:
			r.appendVoters(append(slices.Clone(voters), s))
			return
		case !r.alive(voters[i].ID):
			r.appendVoters(slices.Delete(slices.Clone(voters), i, i+1))
			return
		}
	}
}

// mayChangeVoters: majorities of two lists share a server only if the lists
// differ by one (thesis 4.1), so the last change must be committed; and so must
// an entry of this term, or a change of an earlier leader could still come
// between (Ongaro on raft-dev, 10 July 2015).
func (r *raft) mayChangeVoters() bool {
	return r.role == roleLeader && r.heir == server{} && r.commit >= r.first && r.commit >= r.log.voterSet().Index
}

// caughtUp: at most one append behind, or the cluster might stand still until
// its new voter has the log (thesis 4.2.1).
func (r *raft) caughtUp(id string) bool {
	p := r.peer(id)
	return p != nil && r.alive(id) && p.match >= r.first && p.match+appendEntriesMax >= r.commit
}

// removeVoter begins to take a voter out of the set; it is done when status
// shows a set without it at a committed index. A leader may remove itself: it
// steps down once that is committed. errBusy: a change is under way, try later.
func (r *raft) removeVoter(id string) error {
	voters := r.log.voterSet().Voters
	switch {
	case r.role != roleLeader:
		return errNotLeader
	case !r.isVoter(id):
		return nil
	case len(voters) == 1:
		return errLastVoter
	case !r.mayChangeVoters():
		return errBusy
	}
	r.appendVoters(slices.DeleteFunc(slices.Clone(voters), func(v server) bool { return v.ID == id }))
	return nil
}

func (r *raft) appendVoters(list []server) {
	r.append(entryVoters, encodeVoters(list))
	r.setPeers()
}

func encodeVoters(list []server) []byte {
	list = slices.SortedFunc(slices.Values(list), compareServers)
	data, err := json.Marshal(list)
	if err != nil {
		panic(err) // two strings always have a JSON form
	}
	return data
}

// decodeVoters refuses a list that encodeVoters does not make: the position in
// it is a rank, and one name cannot have two.
func decodeVoters(data []byte) ([]server, error) {
	var list []server
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: voters: %w", errMalformed, err)
	}
	return list, checkVoters(list)
}

func checkVoters(list []server) error {
	for i, v := range list {
		if v.Name == "" || v.ID == "" || i > 0 && v.Name <= list[i-1].Name {
			return fmt.Errorf("%w: voters: not a list in order of names", errMalformed)
		}
	}
	return nil
}

// The disk

// ready says what the outside must do now; ok is false if that is nothing.
// Call it again after each tick, step, propose or persisted, best when a batch
// of them is done: what has gathered goes in one write and one append.
func (r *raft) ready() (rd ready, ok bool) {
	if r.role == roleLeader {
		r.sendAppends()
	}
	if !r.writing {
		if r.state != r.stored {
			state := r.state
			rd.State = &state
		}
		rd.Snapshot, rd.Entries = r.snap, slices.Clip(r.log.tail)
		r.writing, r.writeAge = rd.writes(), 0
	}
	if r.snap == nil && min(r.commit, r.log.durable) > r.told {
		r.told = min(r.commit, r.log.durable)
		rd.Commit = r.told
	}
	rd.Messages, r.out = r.out, nil
	return rd, rd.writes() || rd.Commit > 0 || len(rd.Messages) > 0
}

// persisted says that the write of rd is durable. Only now does it count: for
// the votes that waited for it, for the leader's own copy, for the follower's
// answer.
func (r *raft) persisted(rd ready) {
	r.writing = false
	if rd.State != nil {
		r.stored = *rd.State
	}
	if rd.Snapshot != nil && rd.Snapshot == r.snap {
		r.told = max(r.told, r.snap.Index)
		r.snap = nil
	}
	// A snapshot that arrived meanwhile will replace the log that was written.
	if r.snap == nil {
		r.log.persisted(rd.Entries)
	}
	if r.stored == r.state {
		r.release()
	}
	if r.role == roleLeader {
		r.countCopies()
		r.changeVoters()
	} else if r.leader != (server{}) && r.ackable() > r.acked {
		r.ack()
	}
}

// hold sends a message as soon as term and vote are durable.
func (r *raft) hold(m message) {
	m.From = r.cfg.self
	r.held = append(r.held, m)
	if r.stored == r.state {
		r.release()
	}
}

// release lets held messages go. A candidate's vote for itself goes this way
// too, to itself.
func (r *raft) release() {
	held := r.held
	r.held = nil
	for _, m := range held {
		if m.To == r.cfg.self {
			r.countVote(m.From.ID)
		} else {
			r.out = append(r.out, m)
		}
	}
}

func (r *raft) send(m message) {
	m.From = r.cfg.self
	r.out = append(r.out, m)
}

// Checks

// validate refuses what no correct server of this cluster sends to this one.
func (r *raft) validate(m message) error {
	switch {
	case m.To != r.cfg.self:
		return errMisdirected
	case m.From.ID == "" || m.From.ID == r.cfg.self.ID || m.Kind < msgPreVote || m.Kind > msgStand || m.Term == 0:
		return errMalformed
	case m.Prev.Term > m.Term && (m.Kind == msgAppend || m.Kind == msgSnapshot):
		return errMalformed
	}
	last := m.Prev
	for _, e := range m.Entries {
		if e.Index != last.Index+1 || e.Term == 0 || e.Term < last.Term || e.Term > m.Term || e.Kind > entryVoters {
			return errMalformed
		}
		if e.Kind == entryVoters {
			if _, err := decodeVoters(e.Data); err != nil {
				return err
			}
		}
		last = position{e.Index, e.Term}
	}
	return checkVoters(m.Voters)
}

// check tests invariants 1 to 8 of raft.
func (r *raft) check() error {
	last := r.log.end()
	switch l := &r.log; {
	case r.stored.Term > r.state.Term || r.stored.Term == r.state.Term && r.stored.Vote != "" && r.stored.Vote != r.state.Vote:
		return fmt.Errorf("1: on disk %v, in memory %v", r.stored, r.state)
	case l.base.Index > r.commit || r.commit > l.last:
		return fmt.Errorf("2: base %d, commit %d, last %d", l.base.Index, r.commit, l.last)
	case !slices.IsSortedFunc(l.runs, func(a, b position) int { return cmp.Or(cmp.Compare(a.Term, b.Term), cmp.Compare(a.Index, b.Index)) }) || last.Term > r.state.Term:
		return fmt.Errorf("3: terms %v, own %d", l.runs, r.state.Term)
	case l.durable+uint64(len(l.tail)) != l.last || len(l.tail) > 0 && l.tail[0].Index != l.durable+1:
		return fmt.Errorf("4: durable %d, %d in memory, last %d", l.durable, len(l.tail), l.last)
	case !slices.IsSortedFunc(l.voters, func(a, b voterSet) int { return cmp.Compare(a.Index, b.Index) }) || l.voters[0].Index > r.commit && len(l.voters) > 1:
		return fmt.Errorf("5: voters %v, commit %d", l.voters, r.commit)
	case len(r.held) > 0 && r.stored == r.state || slices.ContainsFunc(r.held, func(m message) bool { return m.Kind != msgVote && m.Kind != msgVoteReply }):
		return fmt.Errorf("6: %d messages wait for the disk", len(r.held))
	case (r.role == roleAsking || r.role == roleCandidate) && !r.mayStand() || r.role == roleLeader && r.stored != hardState{r.state.Term, r.cfg.self.ID}:
		return fmt.Errorf("7: role %d, on disk %v, voters %v", r.role, r.stored, l.voterSet().Voters)
	}
	return r.checkLeader()
}

func (r *raft) checkLeader() error {
	if r.role != roleLeader {
		return nil
	}
	for _, p := range r.peers {
		if p.match >= p.next || p.next > r.log.last+1 {
			return fmt.Errorf("8: %s: match %d, next %d, last %d", p.Name, p.match, p.next, r.log.last)
		}
	}
	own := 0
	for _, v := range r.log.voters {
		if v.Index >= r.first && v.Index > r.commit {
			own++
		}
	}
	if own > 1 || own == 1 && r.commit < r.first {
		return fmt.Errorf("8: voter changes %v, first %d, commit %d", r.log.voters, r.first, r.commit)
	}
	return nil
}

// raftLog is what the protocol remembers of the log: where terms begin, which
// voters are named where, and the entries that are not on disk yet. Its size is
// that of the terms and of what is under way, not of the log.
type raftLog struct {
	base      position   // last entry that was dropped; zero: none
	runs      []position // first entry of each run of equal terms behind base
	last      uint64     // last entry
	durable   uint64     // last entry on disk
	tail      []entry    // the entries behind durable
	tailBytes int        // of their data
	voters    []voterSet // the committed set, then those that are not
}

func (l *raftLog) end() position { return position{l.last, l.term(l.last)} }

// term is that of the entry at index, 0 if that is not in the log.
func (l *raftLog) term(index uint64) uint64 {
	switch {
	case index == l.base.Index:
		return l.base.Term
	case index < l.base.Index || index > l.last:
		return 0
	}
	n := sort.Search(len(l.runs), func(n int) bool { return l.runs[n].Index > index })
	return l.runs[n-1].Term
}

// back is the highest position not above p in index nor in term. If another
// log holds p, then nothing behind that can be in both. In front of base the
// term is unknown, and 0.
func (l *raftLog) back(p position) position {
	index := min(p.Index, l.last)
	for _, run := range slices.Backward(l.runs) {
		if run.Index > index {
			continue
		}
		if run.Term <= p.Term {
			return position{index, run.Term}
		}
		index = run.Index - 1
	}
	if index == l.base.Index && l.base.Term > p.Term {
		index--
	}
	return position{index, l.term(index)}
}

// add puts e at its index, which is at most one behind the last, and cuts off
// what was there.
func (l *raftLog) add(e entry) {
	if e.Index <= l.last {
		l.truncate(e.Index)
	}
	if e.Term != l.term(l.last) || len(l.runs) == 0 {
		l.runs = append(l.runs, position{e.Index, e.Term})
	}
	l.last = e.Index
	l.tail = append(l.tail, e)
	l.tailBytes += len(e.Data)
	if e.Kind == entryVoters {
		voters, err := decodeVoters(e.Data)
		if err != nil {
			panic(err) // validate let it pass, or appendVoters made it
		}
		l.voters = append(l.voters, voterSet{e.Index, voters})
	}
}

// truncate cuts off the entries from index on. A write of some of them may be
// under way: the disk has them until the entry at index is written.
func (l *raftLog) truncate(index uint64) {
	l.last = index - 1
	if l.durable > l.last {
		l.durable = l.last
		l.tail = nil
	}
	l.setTail(slices.Clip(l.tail[:l.last-l.durable])) // the rest may belong to a write
	l.runs = slices.DeleteFunc(l.runs, func(run position) bool { return run.Index >= index })
	l.voters = slices.DeleteFunc(l.voters, func(v voterSet) bool { return v.Index >= index })
}

// persisted notes which of the written entries the log still holds. Those up
// to the last one with the right term are: positions are unique.
func (l *raftLog) persisted(written []entry) {
	for _, e := range slices.Backward(written) {
		if e.Index > l.durable && l.term(e.Index) == e.Term {
			l.setTail(slices.Clone(l.tail[e.Index-l.durable:])) // frees the data
			l.durable = e.Index
			return
		}
	}
}

func (l *raftLog) setTail(tail []entry) {
	l.tail, l.tailBytes = tail, 0
	for _, e := range tail {
		l.tailBytes += len(e.Data)
	}
}

func (l *raftLog) compact(index uint64) {
	l.base = position{index, l.term(index)}
	n := sort.Search(len(l.runs), func(n int) bool { return l.runs[n].Index > index })
	if index < l.last && (n == len(l.runs) || l.runs[n].Index > index+1) {
		n--
		l.runs[n].Index = index + 1
	}
	l.runs = slices.Delete(l.runs, 0, n)
}

func (l *raftLog) voterSet() voterSet { return l.voters[len(l.voters)-1] }

func (l *raftLog) hasVoter(id string) bool {
	return slices.ContainsFunc(l.voterSet().Voters, func(v server) bool { return v.ID == id })
}

// forgetVoters drops the sets that a committed one has replaced.
func (l *raftLog) forgetVoters(commit uint64) {
	for len(l.voters) > 1 && l.voters[1].Index <= commit {
		l.voters = slices.Delete(l.voters, 0, 1)
	}
}

// The driver: the goroutine that owns the value, and the one that writes for it

const (
	tickTime       = 20 * time.Millisecond // of the protocol
	heartbeatTicks = 5                     // 100 ms
	electionTicks  = 25                    // 500 ms
	stepTicks      = 5                     // the second in rank stands 100 ms after the first
	snapshotTicks  = 500                   // 10 s
	proposalsMax   = 4096                  // waiting for the driver; more callers wait in propose
)

var (
	errUnknown  = errors.New("nobody can tell whether the write was done; repeat it with the same Idempotency-Key")
	errRefused  = errors.New("refused") // wraps errors of a call after which the node has surely done nothing
	errTooLarge = fmt.Errorf("the change is larger than %d bytes; make it smaller", commandBytesMax)
)

// A proposal is a command on its way, and where its caller waits.
type proposal struct {
	data  []byte
	index uint64       // in the log, once it is appended
	done  chan outcome // holds one
}

// An outcome is what apply said of a command, or why it came to nothing.
type outcome struct {
	applied
	err error
}

// A diskJob is what the writer does next: first it applies, because callers
// wait for that, then it makes durable.
type diskJob struct {
	commit uint64 // 0: nothing to apply
	ready  *ready // nil: nothing to write
}

// A diskResult is what came of a diskJob.
type diskResult struct {
	job  diskJob
	base uint64 // last entry dropped from the log
	done []applied
	err  error // fatal: nothing is known about the disk any more
}

// cluster drives the protocol. propose and leading may be called by anybody.
type cluster struct {
	self      server
	store     *store
	log       *slog.Logger
	lead      func(ctx context.Context, term uint64) error // the leader's work, for one term
	proposals chan *proposal
	office    atomic.Uint64 // term that this server leads in, 0: it does not

	// Owned by run.
	raft    *raft
	waiting []*proposal // appended, in order of their indexes
	queued  []diskJob   // for the writer, in order; the first is with it
	applied uint64
	leave   context.CancelFunc // ends the leader's work; nil: there is none
	left    chan error         // what the leader's work returned
}

// newCluster returns a driver for the server whose disk s is. A server that
// belongs to no cluster founds one of its own.
func newCluster(self server, s *store, log *slog.Logger, lead func(context.Context, uint64) error) (*cluster, error) {
	disk, err := s.saved()
	if err != nil {
		return nil, err
	}
	if len(disk.Voters[len(disk.Voters)-1].Voters) == 0 {
		state, first := bootstrap([]server{self})
		state.Term = max(state.Term, disk.State.Term)
		first.Index, first.Term = disk.Last+1, state.Term
		if err := s.persist(&state, []entry{first}); err != nil {
			return nil, err
		}
		if disk, err = s.saved(); err != nil {
			return nil, err
		}
	}
	for _, v := range disk.Voters[len(disk.Voters)-1].Voters {
		if v.ID == self.ID && v.Name != self.Name {
			return nil, fmt.Errorf("--node-name: this data directory belongs to %q; start it under that name", v.Name)
		}
	}
	cfg := raftConfig{self: self, heartbeatTicks: heartbeatTicks, electionTicks: electionTicks, stepTicks: stepTicks, snapshotTicks: snapshotTicks}
	return &cluster{
		self: self, store: s, log: log, lead: lead, proposals: make(chan *proposal, proposalsMax), left: make(chan error, 1),
		raft: newRaft(cfg, disk, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))), applied: disk.Applied,
	}, nil
}

// leading reports whether this server leads, and knows all that ever was.
func (c *cluster) leading() bool { return c.office.Load() != 0 }

// propose has a command logged, committed and applied, and returns what apply
// said of it; a refusal is an error too. errNotLeader and errBusy: it was not
// appended. errUnknown: nobody can tell. ctx's error: the caller did not wait.
func (c *cluster) propose(ctx context.Context, cmd *command) (applied, error) {
	data, err := cmd.encode()
	if err != nil {
		return applied{}, err
	}
	if len(data) > commandBytesMax {
		return applied{}, errTooLarge
	}
	if !c.leading() {
		return applied{}, errNotLeader
	}
	p := &proposal{data: data, done: make(chan outcome, 1)}
	select {
	case c.proposals <- p:
	case <-ctx.Done():
		return applied{}, ctx.Err()
	}
	select {
	case o := <-p.done:
		return o.applied, o.err
	case <-ctx.Done():
		return applied{}, ctx.Err()
	}
}

// run drives the protocol until ctx ends, the disk fails, or the leader's work
// does. Whoever waits in propose is answered.
func (c *cluster) run(ctx context.Context) error {
	jobs, results := make(chan diskJob, 1), make(chan diskResult, 1)
	var writer sync.WaitGroup
	writer.Go(func() { c.writeLoop(jobs, results) })
	err := c.drive(ctx, jobs, results)
	close(jobs)
	writer.Wait()
	c.resign()
	if c.leave != nil {
		err = errors.Join(err, <-c.left)
	}
	return err
}

func (c *cluster) drive(ctx context.Context, jobs chan<- diskJob, results <-chan diskResult) error {
	ticker := time.NewTicker(tickTime)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			c.raft.tick()
		case p := <-c.proposals:
			c.append(p)
		case r := <-results:
			if err := c.written(r); err != nil {
				return err
			}
			if c.queued = c.queued[1:]; len(c.queued) > 0 {
				jobs <- c.queued[0]
			}
		case err := <-c.left:
			c.leave = nil
			if err != nil {
				return err
			}
		}
		if rd, ok := c.raft.ready(); ok {
			c.queue(rd, jobs)
		}
		c.takeOffice(ctx)
	}
}

// append gives the protocol all proposals that have gathered.
func (c *cluster) append(p *proposal) {
	batch, data := []*proposal{p}, [][]byte{p.data}
	for size := len(p.data); size < backlogBytesMax && len(batch) < appendEntriesMax; {
		select {
		case p = <-c.proposals:
		default:
			size = backlogBytesMax
			continue
		}
		batch, data, size = append(batch, p), append(data, p.data), size+len(p.data)
	}
	first, err := c.raft.propose(data...)
	if err != nil {
		fail(batch, err)
		return
	}
	for i, p := range batch {
		p.index = first + uint64(i)
	}
	c.waiting = append(c.waiting, batch...)
}

func fail(batch []*proposal, err error) {
	for _, p := range batch {
		p.done <- outcome{err: err}
	}
}

// queue hands the writer what ready asks for, when it is free.
func (c *cluster) queue(rd ready, jobs chan<- diskJob) {
	job := diskJob{commit: rd.Commit}
	if rd.writes() {
		job.ready = &rd
	}
	if job == (diskJob{}) {
		return
	}
	if c.queued = append(c.queued, job); len(c.queued) == 1 {
		jobs <- job
	}
}

// writeLoop owns the store's writing side.
func (c *cluster) writeLoop(jobs <-chan diskJob, results chan<- diskResult) {
	for job := range jobs {
		r := diskResult{job: job}
		r.done, r.err = c.store.applyUpTo(job.commit)
		r.base = c.store.logFirst - 1
		if r.err == nil && job.ready != nil {
			r.err = c.store.persist(job.ready.State, job.ready.Entries)
		}
		results <- r
		if r.err != nil {
			return
		}
	}
}

// written takes note of what the writer did, and answers whose commands were
// applied.
func (c *cluster) written(r diskResult) error {
	if r.err != nil {
		c.log.Error("the disk does not do what it should; the server ends, so that a restart finds out what is there", "err", r.err)
		return fmt.Errorf("the database failed, look at the disk and restart: %w", r.err)
	}
	if r.job.ready != nil {
		c.raft.persisted(*r.job.ready)
	}
	for _, a := range r.done {
		c.applied = a.Index
		if len(c.waiting) > 0 && c.waiting[0].index == a.Index {
			c.waiting[0].done <- outcome{a, a.Err}
			c.waiting = c.waiting[1:]
		}
	}
	c.raft.compacted(r.base)
	return nil
}

// takeOffice starts the leader's work once this server leads and its own first
// entry is applied, and ends it when it does not lead any more.
func (c *cluster) takeOffice(ctx context.Context) {
	st := c.raft.status()
	switch office := c.office.Load(); {
	case office != 0 && (!st.Leading || st.Term != office):
		c.resign()
	case office == 0 && c.leave == nil && st.Established && c.applied >= c.raft.first:
		c.log.Info("this server leads", "term", st.Term)
		ctx, leave := context.WithCancel(ctx)
		c.leave = leave
		c.office.Store(st.Term)
		go func() { c.left <- c.lead(ctx, st.Term) }()
	}
}

// resign ends the leader's work. Nobody can tell any more what becomes of what
// is under way.
func (c *cluster) resign() {
	c.office.Store(0)
	if c.leave != nil {
		c.leave()
	}
	fail(c.waiting, errUnknown)
	c.waiting = nil
	for {
		select {
		case p := <-c.proposals:
			fail([]*proposal{p}, errNotLeader)
		default:
			return
		}
	}
}
