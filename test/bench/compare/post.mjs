// post.mjs: the request that an event becomes in the workers of Node.js measured here: undici, its own connections kept
// open, 64 at most, as many as the dispatcher's channel has; headers as the dispatcher sends them.
import { Pool } from 'undici'

// A function that posts a payload, and fails unless the answer is 200.
export function poster (url) {
  const { origin, pathname } = new URL(url)
  const pool = new Pool(origin, { connections: 64, pipelining: 1 })
  return async (payload, id) => {
    const { statusCode, body } = await pool.request({
      path: pathname,
      method: 'POST',
      headers: { 'content-type': 'application/json', 'idempotency-key': id, 'user-agent': 'worker' },
      body: JSON.stringify(payload)
    })
    await body.dump()
    if (statusCode !== 200) throw new Error(`status ${statusCode}`)
  }
}
