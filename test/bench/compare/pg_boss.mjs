// pg_boss.mjs: pg-boss, measured beside pg_accord. The server is that of PGHOST and PGPORT.
//
//   node pg_boss.mjs setup       makes its schema and a queue; prints the statement by which it sends, in one line: its
//                                $1 is an array of jobs, as JSON in a text
//   node pg_boss.mjs work URL    posts every job's data there; prints "ready", ends with a signal
//
// Its settings: woken by NOTIFY, fetching again at once while batches are full, a batch's outcomes told job by job, so
// that one failure does not repeat the others.
import { PgBoss } from 'pg-boss'
import { poster } from './post.mjs'

const { PGHOST: host, PGPORT: port } = process.env
const [command, url] = process.argv.slice(2)
const batchSize = Number(process.env.BATCH ?? 500)
const localConcurrency = Number(process.env.WORKERS ?? 2)
const boss = new PgBoss({
  host,
  port: Number(port),
  user: 'postgres',
  database: 'postgres',
  max: 10,
  useListenNotify: true
})
boss.on('error', error => console.error(error.message))
await boss.start()

// The statement that pg-boss has for sending: taken from it as it sends into a transaction that does not exist.
async function sendingStatement () {
  let statement
  const db = {
    executeSql: async (text, values) => {
      if (/INSERT INTO/.test(text)) statement = text
      return { rows: [{ id: 'none' }] }
    }
  }
  await boss.send('post', { n: 0 }, { db })
  return statement.replace(/\s+/g, ' ').trim()
}

if (command === 'setup') {
  await boss.createQueue('post', { notify: true, retryLimit: 20, retryBackoff: true })
  console.log(await sendingStatement())
  await boss.stop({ graceful: false })
} else {
  const post = poster(url)
  const settle = async job => {
    try {
      await post(job.data, job.id)
      return { id: job.id, status: 'completed' }
    } catch (error) {
      return { id: job.id, status: 'failed', output: { message: error.message } }
    }
  }
  const options = { batchSize, localConcurrency, burstWhenBatchFull: true, perJobResults: true }
  await boss.work('post', options, jobs => Promise.all(jobs.map(settle)))
  process.once('SIGTERM', async () => {
    await boss.stop()
    process.exit()
  })
  console.log('ready')
}
